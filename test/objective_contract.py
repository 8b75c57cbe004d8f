"""The contract of objectives with the training loop. Test modules inherit these tests and provide the cases."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import same_weights
from torch import Tensor

from anomseg_ros.core.labels import KNOWN_UNCERTAIN
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.errors import ConfigError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.config import OptimizerConfig
from anomseg_ros.training.losses import IGNORED, OUTLIER
from anomseg_ros.training.objectives import Needs, Objective, Task, objective_class

KNOWN = 5
SIZE_PX = (32, 64)
STEPS = 10


@dataclass(frozen=True)
class Case:
    """An objective of the table, its options (keys of `loss`), and the network to train."""

    objective: str
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = "mide_net"
    void: bool = False
    network_options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [self.objective, *map(str, self.options), self.network, *self.network_options]
        return "-".join([*words, *(["void"] if self.void else [])])

    def start(self) -> tuple[Objective, SegmentationNetwork]:
        """Return the objective and a prepared network whose first part is frozen."""
        torch.manual_seed(0)
        outputs = KNOWN + self.void
        network = build_network(self.network, outputs, **self.network_options).train()
        parts = [part for name, part in network.named_children() if name != "auxiliary_heads"]
        parts[0].requires_grad_(False)
        chosen = objective_class(self.objective)
        task = Task(np.full(outputs, 1 / outputs), KNOWN if self.void else None, STEPS)
        objective = chosen(from_plain(chosen.options_type, dict(self.options), "here"), task)
        objective.prepare(network)
        return objective, network


def labels() -> Tensor:
    """Return a target (2, 32, 64) with pixels of every kind."""
    target = torch.randint(0, KNOWN, (2, *SIZE_PX), generator=torch.Generator().manual_seed(0))
    target[:, :4], target[:, 4:8], target[:, 8:12] = KNOWN_UNCERTAIN, OUTLIER, IGNORED
    return target


def loss_of(objective: Objective, network: SegmentationNetwork, target: Tensor, step: int = 3) -> dict[str, Tensor]:
    """Return the terms for random images."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, *SIZE_PX, generator=generator)
    teachers = [torch.randn(2, KNOWN, *SIZE_PX, generator=generator)] if objective.needs.teachers else []
    torch.manual_seed(2)
    return objective.loss(objective.ask(network, images, step), target, teachers, step)


def gradients(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


class ObjectiveContract:
    """Checks the contract of an objective. Subclasses are named Test... and have a fixture `case`."""

    def test_loss_is_the_finite_sum_of_its_terms(self, case: Case) -> None:
        terms = loss_of(*case.start(), labels())
        total = terms.pop("total")
        assert terms and all(term.shape == () and term.dtype == torch.float32 for term in terms.values())
        assert total.isfinite() and total.item() == pytest.approx(sum(term.item() for term in terms.values()))

    @pytest.mark.parametrize("value", [0, KNOWN_UNCERTAIN, OUTLIER, IGNORED])
    def test_target_of_one_kind_of_pixels_gives_finite_gradients(self, case: Case, value: int) -> None:
        objective, network = case.start()
        total = loss_of(objective, network, torch.full_like(labels(), value))["total"]
        assert total.isfinite()
        total.backward()
        assert all(gradient.isfinite().all() for gradient in gradients(network).values())

    def test_exactly_the_trained_parameters_get_gradients(self, case: Case) -> None:
        objective, network = case.start()
        loss_of(objective, network, labels())["total"].backward()
        for module in (network, objective):
            trains = {name for name, value in module.named_parameters() if value.requires_grad}
            assert gradients(module).keys() == trains
        assert any(gradient.any() for gradient in gradients(network).values())

    def test_groups_contain_every_trained_parameter_once(self, case: Case) -> None:
        objective, network = case.start()
        groups = objective.groups(network, OptimizerConfig())
        held = [id(parameter) for group in groups for parameter in group.parameters]
        trains = [id(p) for module in (network, objective) for p in module.parameters() if p.requires_grad]
        assert sorted(held) == sorted(trains)
        for step in (0, STEPS - 1):
            factors = [group.factor(step) if callable(group.factor) else group.factor for group in groups]
            assert all(factor >= 0 for factor in factors) and any(factors)

    def test_equal_objectives_give_equal_losses_and_gradients(self, case: Case) -> None:
        results = []
        for _ in range(2):
            objective, network = case.start()
            terms = loss_of(objective, network, labels())
            terms["total"].backward()
            results.append(({name: term.detach() for name, term in terms.items()}, gradients(network)))
        assert all(same_weights(first, second) for first, second in zip(*results, strict=True))

    def test_options_round_trip_and_unknown_keys_are_refused(self, case: Case) -> None:
        kind = objective_class(case.objective).options_type
        assert isinstance(kind().needs, Needs), "every option has a default"
        options = from_plain(kind, dict(case.options), "here")
        assert from_plain(kind, to_plain(options), "here") == options
        with pytest.raises(ConfigError, match="here: unknown key 'no_such_option'; did you mean "):
            from_plain(kind, {**case.options, "no_such_option": 1}, "here")

    def test_merged_network_is_plain_and_gives_equal_logits(self, case: Case, tmp_path: Path) -> None:
        objective, network = case.start()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        network.eval()
        before = copy.deepcopy(network.state_dict())
        save_checkpoint(tmp_path / "merged.safetensors", objective.merged(network), {})
        assert same_weights(before, network.state_dict()), "the network goes on training as it was"
        plain = load_checkpoint(tmp_path / "merged.safetensors", case.network, network.num_classes)
        images = torch.rand(1, 3, *SIZE_PX, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            torch.testing.assert_close(plain(images), network(images), rtol=1e-4, atol=1e-4)

    def test_parameters_of_the_objective_are_restored(self, case: Case) -> None:
        objective, network = case.start()
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(1)
        again, _ = case.start()
        again.load_state_dict(objective.state_dict())
        ours, theirs = (loss_of(each, network, labels())["total"] for each in (objective, again))
        assert ours.item() == theirs.item()
