"""The objective "masks": annealing, options, LoRA from training to the adapter's file, and networks that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft", reason="the extra `heavy` is not installed")

from objective_contract import SIZE_PX, labels, loss_of  # noqa: E402
from tiny_runs import run, state, weights, write_config, write_frames  # noqa: E402

from anomseg_ros import cli  # noqa: E402
from anomseg_ros.errors import CheckpointError, ConfigError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.networks.adapters import load_with_adapter  # noqa: E402
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from anomseg_ros.networks.eomt import EoMT  # noqa: E402
from anomseg_ros.training.config import load_config  # noqa: E402
from anomseg_ros.training.mask_objective import MaskObjective, MaskOptions  # noqa: E402
from anomseg_ros.training.objectives import Task  # noqa: E402

SMALL = {"width": 64, "depth": 2, "query_blocks": 1, "queries": 12, "grid": [2, 3]}
LOSS = {"points": 64, "annealing": [[0, 0.5]]}


def objective(void: int | None = None, **options: Any) -> MaskObjective:
    return MaskObjective(MaskOptions(points=64, **options), Task(np.ones(3) / 3, void, 100))


def test_masks_disappear_block_by_block() -> None:
    plain = objective()
    shares = [[round(plain._masked_share(block, 2, step), 3) for block in (0, 1)] for step in (0, 25, 37, 50, 62, 75)]
    # Block 0 from 25 to 50 of 100 steps, block 1 from 50 to 75, with a power of .9.
    assert shares[0] == shares[1] == [1.0, 1.0] and shares[3] == [0.0, 1.0] and shares[5] == [0.0, 0.0]
    assert shares[2][0] == pytest.approx((1 - 12 / 25) ** 0.9, abs=1e-3)
    assert objective(annealing=((0.0, 0.2),))._masked_share(0, 1, 10) == pytest.approx(0.5**0.9)
    assert objective(masked_attention=False)._masked_share(0, 1, 0) == 0.0


def test_eomt_large_has_the_annealing_of_its_authors() -> None:
    """Steps 3317-6634, -9951, -13268 and -16585 of 19,902."""
    trained = MaskObjective(MaskOptions(), Task(None, None, 19_902))
    for block, (begin, end) in enumerate([(3317, 6634), (6634, 9951), (9951, 13_268), (13_268, 16_585)]):
        assert trained._masked_share(block, 4, begin) == 1.0 > trained._masked_share(block, 4, begin + 2)
        assert trained._masked_share(block, 4, end - 2) > 0.0 == trained._masked_share(block, 4, end)


def test_every_stage_adds_to_the_loss() -> None:
    torch.manual_seed(0)
    network = EoMT(5, width=64, depth=2, query_blocks=2, queries=6)
    images = torch.rand(2, 3, *SIZE_PX)
    trained = objective(masked_attention=False)
    answer = trained.ask(network, images, 0)
    torch.manual_seed(1)
    total = trained.terms(answer, labels(), [], 0)
    torch.manual_seed(1)
    *earlier, last = network.predict_stages(images, (0.0, 0.0))
    apart = [objective().terms(type(answer)(one), labels(), [], 0) for one in (*earlier, last)]
    for name in ("mask", "dice", "class"):
        torch.testing.assert_close(total[name], torch.stack([terms[name] for terms in apart]).sum())


def test_margin_makes_the_loss_of_known_classes_harder() -> None:
    torch.manual_seed(0)
    network = EoMT(5, width=64, depth=2, query_blocks=1, queries=6, cosine_scale=30.0)
    losses = []
    for margin in (0.0, 0.5):
        trained = objective(class_loss="arcface", margin=margin)
        trained.prepare(network)
        losses.append(loss_of(trained, network, labels())["class"].item())
    assert losses[1] > losses[0] + 1
    network_of_another_scale = EoMT(5, width=64, depth=2, query_blocks=1, queries=6, cosine_scale=8.0)
    trained.prepare(network_of_another_scale)
    assert trained.scale == 8.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_finite_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = EoMT(6, width=64, depth=2, query_blocks=1, queries=6, cosine_scale=30.0)
    for class_loss in ("arcface", "released_arcface", "logit_norm"):
        trained = objective(5, class_loss=class_loss, rba_weight=1.0, released_outlier_weight=1.0)
        trained.prepare(network)
        with torch.autocast("cpu", dtype):
            terms = loss_of(trained, network, labels().masked_fill(labels() == 254, 5))
        terms["total"].backward()
        assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
        assert all(value.grad.isfinite().all() for value in network.parameters() if value.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_loss": "arc"}, "unknown class loss 'arc'; known: arcface"),
        ({"mask_weight": -1.0}, "mask_weight is -1.0; expected a finite number from 0 up"),
        ({"no_object_weight": 0.0}, "no_object_weight is 0.0"),
        ({"importance": 1.5}, "importance is 1.5; expected a share"),
        ({"oversample": 0.5}, "oversample is 0.5"),
        ({"margin": 2.0}, "margin is 2.0; expected an angle"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"warmup_steps": (-1, 0)}, "warmup_steps is"),
        ({"annealing": ((0.5, 0.5),)}, "annealing is"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskOptions(**options)
    with pytest.raises(ConfigError, match="points is 0"):
        MaskOptions(points=0)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("mide_net", {}, "needs masks, which mide_net has not; take eomt"),
        ("eomt", {"class_loss": "arcface"}, "set network.options.cosine_scale, such as 30"),
        ("eomt", {"annealing": ((0.0, 1.0),)}, "annealing has 1 pairs, but 2 blocks have queries"),
    ],
)
def test_networks_that_do_not_fit_are_refused(network: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective(**options).prepare(build_network(network, 3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train with LoRA on a saved base; return the folder of the run and the base."""
    root = tmp_path_factory.mktemp("lora")
    data = write_frames(root / "data")
    torch.manual_seed(5)
    save_checkpoint(root / "base.safetensors", build_network("eomt", 11, **SMALL), {})
    config = write_config(
        root / "tiny.yaml",
        data,
        objective="masks",
        network={"name": "eomt", "options": SMALL, "initial": {"checkpoint": str(root / "base.safetensors")}},
        loss={**LOSS, "lora": {"rank": 2}, "warmup_steps": [1, 1], "layer_decay": 0.9},
        run={"ema_decay": 0.5, "accumulate": 2, "precision": "bf16-mixed"},
    )
    run(load_config(config), root / "out", initial=root / "base.safetensors")
    return root / "out", root / "base.safetensors"


def test_updates_train_and_the_encoder_stays_to_the_bit(trained: tuple[Path, Path]) -> None:
    output, base = trained
    kept = state(output)["network"]
    before = load_checkpoint(base, "eomt", 11).state_dict()
    assert any(value.abs().max() > 0 for name, value in kept.items() if ".lora_B." in name)
    joint = torch.cat([kept[f"blocks.1.attn.qkv.{part}.base_layer.weight"] for part in "qkv"])
    assert torch.equal(joint, before["blocks.1.attn.qkv.weight"])
    assert torch.equal(kept["blocks.0.mlp.fc2.base_layer.weight"], before["blocks.0.mlp.fc2.weight"])
    for name in ("pos_embed", "patch_embed.weight", "blocks.0.norm1.weight", "blocks.1.attn.proj.weight"):
        assert torch.equal(kept[name], before[name]), name
    merged = weights(output, network="eomt")
    assert merged.keys() == before.keys()
    assert not torch.equal(merged["blocks.1.attn.qkv.weight"], before["blocks.1.attn.qkv.weight"])
    assert not torch.equal(merged["mask_head.0.weight"], before["mask_head.0.weight"])


def test_adapter_on_its_base_is_the_merged_network(trained: tuple[Path, Path], tmp_path: Path) -> None:
    output, base = trained
    adapter = output / "last.adapter.safetensors"
    merged, loaded = weights(output, network="eomt"), load_with_adapter(base, adapter)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, merged[name], atol=1e-6, rtol=1e-6, msg=name)
    assert loaded.checkpoint_metadata["num_classes"] == 11 and not loaded.training
    other = build_network("eomt", 11, **SMALL)
    save_checkpoint(tmp_path / "other.safetensors", other, {})
    with pytest.raises(CheckpointError, match=r"other.safetensors is not the base that .*last.adapter.safetensors was"):
        load_with_adapter(tmp_path / "other.safetensors", adapter)
    with pytest.raises(CheckpointError, match="is no adapter; give a"):
        load_with_adapter(base, base)


def test_damaged_adapters_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    import safetensors
    from safetensors.torch import save_file

    from anomseg_ros.networks.adapters import FORMAT

    output, base = trained
    (tmp_path / "cut.safetensors").write_bytes((output / "last.adapter.safetensors").read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_with_adapter(base, tmp_path / "cut.safetensors")
    with safetensors.safe_open(output / "last.adapter.safetensors", "pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    first = next(iter(tensors))
    for name, changed in (
        ("fewer", {first: None}),
        ("shape", {first: torch.zeros(1)}),
        ("more", {"x": torch.zeros(1)}),
    ):
        kept = {key: value for key, value in (tensors | changed).items() if value is not None}
        save_file(kept, tmp_path / f"{name}.safetensors", header)
        with pytest.raises(CheckpointError, match="does not fit its own description"):
            load_with_adapter(base, tmp_path / f"{name}.safetensors")
    texts = {
        "newer": (header[FORMAT].replace('"version": 1', '"version": 2'), "is of format 2, newer than 1"),
        "text": ("{", "has a damaged anomseg_ros.adapter description"),
        "options": (header[FORMAT].replace('"width": 64', '"width": 65'), "has a damaged"),
        "network": (header[FORMAT].replace('"network": "eomt"', '"network": "no"'), "has a damaged"),
    }
    for name, (text, message) in texts.items():
        save_file(tensors, tmp_path / f"{name}.safetensors", {FORMAT: text})
        with pytest.raises(CheckpointError, match=message):
            load_with_adapter(base, tmp_path / f"{name}.safetensors")


def test_export_refuses_an_adapter_of_other_classes(trained: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    output, base = trained
    words = ["export", "--network", "eomt", "--checkpoint", str(base), "--label-set", "camvid", "--num-classes", "12"]
    words += ["--void-class", "11", "--adapter", str(output / "last.adapter.safetensors")]
    assert cli.main([*words, "--output", str(tmp_path / "bundle")]) == 1
    assert "is for network 'eomt' of 11 classes, not 'eomt' of 12; ask for that one" in capsys.readouterr().err
