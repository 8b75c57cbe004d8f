"""Quantizing from Python: a request returns a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pruning_place import make_place

from anomseg_ros.compression.drift import Guard, Tolerance
from anomseg_ros.compression.qat import FineTuneConfig
from anomseg_ros.compression.quantize import QuantizeRequest, quantize_bundle
from anomseg_ros.compression.quantize_onnx import QuantizeConfig
from anomseg_ros.compression.quantize_torch import TorchQuantizeConfig
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.errors import AnomsegError, CompressionError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, its checkpoint, and twelve frames of a street."""
    return make_place(tmp_path_factory.mktemp("quantize"))


def request_of(place: Path, output: Path, **given: Any) -> QuantizeRequest:
    bundle = load_bundle(place / "whole")
    return QuantizeRequest(**{"bundle": bundle, "output": output, "frames": (str(place / "frames"),), **given})


@pytest.mark.slow
def test_too_much_drift_is_refused_unless_accepted(place: Path, tmp_path: Path) -> None:
    strict = request_of(
        place,
        tmp_path / "small",
        config=QuantizeConfig(keep_float="none", equalize=False, compensate=False),
        guard=Guard(Tolerance(rank_correlation=1.0)),
        seed=3,
    )
    with pytest.raises(CompressionError, match=r"rank correlation .* \(at least 1\)"):
        quantize_bundle(strict)
    assert not strict.output.exists()
    told: list[str] = []
    accepted = replace(strict, guard=replace(strict.guard, accept_drift=True))
    bundle = quantize_bundle(accepted, lambda what, done, total: told.append(what))
    assert bundle.contract.precision == "int8" and bundle.directory == strict.output
    compression = bundle.contract.compression
    assert compression["drift"]["accepted"] is True and compression["drift"]["tolerance"]["rank_correlation"] == 1.0
    assert compression["settings"]["ranges"]["method"] == "error" and compression["settings"]["seed"] == 3
    assert list(dict.fromkeys(told)) == ["reading frames", "ranges of values", "drift on held-out frames"]
    with pytest.raises(CompressionError, match="int8 already"):
        request_of(place, tmp_path / "again", bundle=bundle).check()


@pytest.mark.slow
def test_more_layers_stay_in_float_where_held_out_frames_lose_too_much(place: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(equalize=False, compensate=False, label_agreement=0.5, rank_correlation=0.5)
    first = quantize_bundle(request_of(place, tmp_path / "first", config=config, guard=Guard(accept_drift=True)))
    lowest = min(score["rank_correlation"] for score in first.contract.compression["drift"]["scores"].values())
    stricter = Tolerance(label_agreement=0.0, rank_correlation=(1 + lowest) / 2)
    second = quantize_bundle(request_of(place, tmp_path / "second", config=config, guard=Guard(stricter)))
    more, before = (each.contract.compression["settings"]["float_layers"] for each in (second, first))
    assert len(more) > len(before)


def test_wider_configurations_are_for_the_search_alone() -> None:
    shares = [config.max_float for config in QuantizeConfig().wider()]
    assert shares == [0.5, 0.75]
    assert [config.max_float for config in QuantizeConfig(target="tensorrt").wider()] == [0.75]
    assert [config.margin for config in QuantizeConfig().wider()] == [0.55, 0.775]
    assert not list(QuantizeConfig(keep_float="none").wider())
    assert not list(QuantizeConfig(max_float=0.8).wider())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"config": TorchQuantizeConfig(), "backend": "torch"}, "give `checkpoint`"),
        ({"fine_tune": FineTuneConfig(steps=5)}, "give `checkpoint`"),
        ({"fine_tune": FineTuneConfig(steps=5), "checkpoint": Path("nowhere.pth")}, "nowhere.pth does not exist"),
        ({"config": TorchQuantizeConfig()}, "'onnxruntime' does not run what TorchQuantizeConfig makes"),
        ({"backend": "torch"}, "'torch' does not run what QuantizeConfig makes"),
    ],
)
def test_invalid_requests_are_refused_before_any_work(
    given: dict[str, Any], said: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(AnomsegError, match=said):
        quantize_bundle(request_of(place, tmp_path / "small", **given))
    with pytest.raises(AnomsegError, match="never changed"):
        quantize_bundle(request_of(place, place / "whole", overwrite=True))
