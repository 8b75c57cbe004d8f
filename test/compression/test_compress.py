"""Compression recipes from Python: the requests of the steps, and both steps in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pruning_place import make_place

from anomseg_ros.compression.compress import CompressRequest, compress
from anomseg_ros.compression.drift import Guard, Tolerance
from anomseg_ros.compression.fine_tune import FineTune
from anomseg_ros.compression.prune import PruneConfig
from anomseg_ros.compression.pruned_bundle import PRUNED_TOLERANCE, prune_bundle
from anomseg_ros.compression.recipe import QuantizeStep, Recipe
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.errors import BundleError, CheckpointError, CompressionError

PRUNING = PruneConfig(fraction=0.25)
BOTH = Recipe("both", PRUNING, FineTune("enet-camvid", ("run.epochs=9",)), QuantizeStep(keep_float="a, b"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, its checkpoint, and twelve frames of a street."""
    return make_place(tmp_path_factory.mktemp("compress"))


def request_of(place: Path, output: Path, recipe: Recipe, **given: Any) -> CompressRequest:
    return CompressRequest(
        bundle=load_bundle(place / "whole"),
        output=output,
        frames=(str(place / "frames"),),
        recipe=recipe,
        checkpoint=place / "whole.safetensors",
        held_out_frames=2,
        **given,
    )


@pytest.mark.slow
def test_each_step_gets_its_own_settings(place: Path, tmp_path: Path) -> None:
    guard = Guard(datasets=("camvid=somewhere",), threads=1)
    request = request_of(
        place,
        tmp_path / "out",
        BOTH,
        guard=guard,
        bounds={"miou_points": 7.0},
        set=("run.threads=1",),
        data="d",
        seed=5,
    )
    first = request.pruning(PRUNING)
    assert first.output == tmp_path / "out-float" and not first.overwrite and first.seed == 5
    assert first.fine_tune == FineTune("enet-camvid", ("run.epochs=9", "run.threads=1"), "d")
    assert first.guard == replace(guard, tolerance=replace(PRUNED_TOLERANCE, miou_points=7.0))
    assert BOTH.quantize is not None
    second = request.quantizing(BOTH.quantize, load_bundle(place / "whole"))
    assert second.output == tmp_path / "out" and second.original == request.bundle
    assert second.guard == replace(guard, tolerance=Tolerance(miou_points=7.0))
    assert second.config.keep_float == ("a", "b") and second.checkpoint is None and not second.needs_checkpoint
    assert request.quantizing(BOTH.quantize, request.bundle).original is None
    alone = replace(request, recipe=Recipe("one", PRUNING), overwrite=True).pruning(PRUNING)
    assert alone.output == tmp_path / "out" and alone.overwrite and alone.fine_tune is None


@pytest.mark.slow
def test_pruning_and_quantizing_run_in_turn(place: Path, tmp_path: Path) -> None:
    recipe = Recipe("both", PRUNING, None, QuantizeStep(keep_float="none"))
    request = request_of(place, tmp_path / "out", recipe, guard=Guard(accept_drift=True))
    first, second = compress(request)
    assert first.pruning == PRUNING and first.parent == request.bundle and second.pruning is None
    assert first.bundle.directory == tmp_path / "out-float" and second.parent == first.bundle
    assert second.bundle.contract.compression["original"]["name"] == "whole"
    # The recipe replaces only its own bundles.
    assert request.pruning(PRUNING).overwrite
    assert not request.pruning(PruneConfig(fraction=0.5)).overwrite


@pytest.mark.slow
def test_frames_are_checked_before_any_work(place: Path, tmp_path: Path) -> None:
    request = request_of(place, tmp_path / "out", Recipe("both", PRUNING, None, QuantizeStep(calibration_frames=4)))
    with pytest.raises(CompressionError, match="allow_few"):
        next(compress(request))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_pruning_request_is_checked_before_any_work(place: Path, tmp_path: Path) -> None:
    request = request_of(place, tmp_path / "out", Recipe("one", PRUNING)).pruning(PRUNING)
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\.safetensors; give the `checkpoint`"):
        prune_bundle(replace(request, checkpoint=None))
    request.output.mkdir()
    with pytest.raises(BundleError, match="exists"):
        prune_bundle(request)
