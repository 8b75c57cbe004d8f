"""The objective "dual_stream": its terms, frozen encoders, the stage of outliers, and networks that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy", reason="the extra `heavy` is not installed")

from objective_contract import SIZE_PX, labels, loss_of  # noqa: E402
from tiny_runs import run, weights, write_config, write_frames  # noqa: E402

from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.networks.checkpoints import save_checkpoint  # noqa: E402
from anomseg_ros.networks.dual_stream_adapter import STREAM_FEATURES, DualStreamAdapter  # noqa: E402
from anomseg_ros.networks.prediction import MaskPrediction  # noqa: E402
from anomseg_ros.training.config import load_config  # noqa: E402
from anomseg_ros.training.dual_stream_objective import DualStreamObjective, DualStreamOptions  # noqa: E402
from anomseg_ros.training.hyperbolic import stream_loss  # noqa: E402
from anomseg_ros.training.objectives import Answer, Task  # noqa: E402

SMALL = {"decoder_layers": 1, "pixel_layers": 1, "queries": 8, "grid": [1, 2]}


def objective(void: int | None = None, **options: Any) -> DualStreamObjective:
    return DualStreamObjective(DualStreamOptions(points=64, **options), Task(np.ones(3) / 3, void, 100))


def test_term_of_streams_is_the_weighted_loss_of_their_maps() -> None:
    torch.manual_seed(0)
    network, trained = DualStreamAdapter(5, queries=6).eval(), objective()
    images = torch.rand(2, 3, 30, 50)
    target = labels()[:, :30, :50]
    answer = trained.ask(network, images, 0)
    terms = trained.terms(answer, target, [], 0)
    cells = torch.full((2, 32, 64), 2)  # padding does not count
    cells[:, :30, :50] = (target >= 254).long()  # known objects without a class are known
    maps = [network.predict(images, STREAM_FEATURES).features[name] for name in STREAM_FEATURES]
    expected = 0.1 * stream_loss(maps, cells, "hyperbolic", "labels", 0.01, 1.0)
    torch.testing.assert_close(terms["streams"], expected)
    assert terms.keys() == {"mask", "dice", "class", "streams"}
    with_class = objective(4)
    assert (with_class._cells(target, (32, 64)) == 1).sum() == ((target >= 254) | (target == 4)).sum()


def test_outliers_lower_the_loss_where_their_score_is_high() -> None:
    """A network whose masks are empty at the outliers has less loss than one whose masks cover them."""
    trained, target = objective(stream_weight=0.0, contrastive_weight=1.0), labels()
    assert trained.needs.outliers and not trained.needs.features
    losses = []
    for inside in (-20.0, 20.0):
        masks = torch.full((2, 1, 16, 32), 20.0)
        masks[:, :, 2:4] = inside  # rows 4 to 8 of the target are outliers
        classes = torch.tensor([20.0, 0, 0, 0, 0, 0]).expand(2, 1, 6)
        prediction = MaskPrediction(size_px=SIZE_PX, padded_px=SIZE_PX, mask_logits=masks, class_logits=classes)
        *_, outliers, known = trained._semantic(prediction, target)
        assert known == 5 and outliers.sum() == (target == 254).sum()
        losses.append(trained.terms(Answer(prediction), target, [], 0)["contrastive"])
    assert losses[0] < 0.01 and losses[1] > 0.49


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_finite_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, trained = DualStreamAdapter(5, queries=6), objective(contrastive_weight=1.0)
    trained.prepare(network)
    with torch.autocast("cpu", dtype):
        terms = loss_of(trained, network, labels())
    terms["total"].backward()
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
    assert all(value.grad.isfinite().all() for value in network.parameters() if value.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream_weight": -1.0}, "stream_weight is -1.0; expected a finite number from 0 up"),
        ({"curvature": 0.0}, "curvature is 0.0; expected a finite number above 0"),
        ({"contrastive_weight": float("inf")}, "contrastive_weight is inf"),
        ({"stream_loss": "hyper"}, "unknown stream_loss 'hyper'; known: hyperbolic"),
        ({"stream_cells": "label"}, "unknown stream_cells 'label'; known: labels"),
        ({"mask_weight": -1.0}, "mask_weight is -1.0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DualStreamOptions(**options)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="is for dual_stream_adapter, not for eomt; take masks"):
        objective().prepare(build_network("eomt", 3))
    with pytest.raises(ConfigError, match="for two streams, and the network has 1; set it to 0"):
        objective().prepare(DualStreamAdapter(3, streams=1))
    objective(stream_weight=0.0).prepare(DualStreamAdapter(3, streams=0))
    for options in ({"masked_attention": False}, {"annealing": ((0.0, 0.5),) * 3}):
        with pytest.raises(ConfigError, match="dual_stream_adapter keeps the masks of attention"):
            objective(**options).prepare(DualStreamAdapter(3))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Train an adapter on a frozen encoder, then its decoder with outliers; return the weights of all three."""
    root = tmp_path_factory.mktemp("stages")
    data = write_frames(root / "data")
    torch.manual_seed(5)
    save_checkpoint(root / "base.safetensors", build_network("dual_stream_adapter", 11, **SMALL), {})
    found = [weights(root, "base", "dual_stream_adapter")]
    before = root / "base.safetensors"
    for stage, frozen, loss, extra in (
        ("first", ["encoder"], {}, {}),
        (
            "outliers",
            ["encoder", "adapter"],
            {"stream_weight": 0.0, "contrastive_weight": 1.0},
            {"cut_paste": {"probability": 1.0, "paste": {"min_area_px": 20, "scale": [0.05, 0.3]}}},
        ),
    ):
        network = {"name": "dual_stream_adapter", "options": SMALL, "frozen": frozen}
        config = write_config(
            root / f"{stage}.yaml",
            data,
            objective="dual_stream",
            network={**network, "initial": {"checkpoint": str(before)}},
            data=extra,
            loss={"points": 64, **loss},
            optimizer={"kind": "adamw", "weight_decay": 0.05},
            run={"epochs": 2, "precision": "bf16-mixed"},
        )
        run(load_config(config), root / stage, initial=before)
        before = root / stage / "last.safetensors"
        found.append(weights(root / stage, "last", "dual_stream_adapter"))
    return found[0], found[1], found[2]


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Return the parts with a tensor that changed."""
    return {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}


@pytest.mark.slow
def test_frozen_encoder_is_unchanged_to_the_bit_while_adapter_and_decoder_train(stages: Any) -> None:
    base, first, _ = stages
    assert changed(base, first) == {"adapter", "pixel_decoder", "query_decoder"}
    moved = {key for key in first if key.startswith("adapter.") and not torch.equal(base[key], first[key])}
    assert any("extractors.0." in key for key in moved) and any("extractors.1." in key for key in moved)


def test_stage_of_outliers_trains_the_decoder_alone(stages: Any) -> None:
    _, first, outliers = stages
    assert changed(first, outliers) == {"pixel_decoder", "query_decoder"}
