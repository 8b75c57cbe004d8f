"""NVIDIA's own parser and builder, on any CPU: what they take of our graphs, and of ONNX.

TensorRT-RTX stands in for TensorRT, which needs a GPU even to parse: pip install '.[tensorrt-check]'.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fitted_networks import BUNDLE_SCORES, PIXEL_SCORES, fit_on_noise

from anomseg_ros.backends.built_engines import EVERYTHING, engine_outputs
from anomseg_ros.backends.tensorrt_build import BuildOptions, build_engine
from anomseg_ros.backends.tensorrt_library import Library, load_library
from anomseg_ros.compression.half import HALF, in_half_precision, layers_in_half
from anomseg_ros.compression.quantize_onnx import QuantizeConfig, quantize
from anomseg_ros.compression.ranges import RangeConfig
from anomseg_ros.compression.sensitivity import NONE
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, Contract, Provenance, save_bundle
from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.core.progress import no_progress
from anomseg_ros.errors import BackendError
from anomseg_ros.export import ExportConfig, contract_of, write_graph
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.argmax_form import with_comparisons
from anomseg_ros.scores import find_score

HEIGHT_PX, WIDTH_PX = 64, 128
PRECISIONS = ("fp32", *HALF, "int8")


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return load_library(parse_only=True)
    except BackendError as error:
        pytest.skip(str(error))


def exported(name: str, folder: Path, pixel_scores: Sequence[str] = PIXEL_SCORES) -> tuple[Contract, onnx.ModelProto]:
    """Return the contract and the float graph of a network, for GPUs, with these scores."""
    scores = tuple(sorted(pixel_scores, key=lambda score: not find_score(score).needs_void))
    config = ExportConfig(name, 20, 19, height_px=HEIGHT_PX, width_px=WIDTH_PX, scores=scores, target="gpu")
    torch.manual_seed(0)
    network = build_network(name, 20).eval()
    fit_on_noise(network, config)
    return contract_of(name, config, Provenance()), onnx.load(write_graph(network, config, folder))


def converted(graph: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    if precision in HALF:
        return in_half_precision(graph, precision)
    if precision == "int8":
        frames = [frame[np.newaxis] for frame in noise_frames(HEIGHT_PX, WIDTH_PX)]
        config = QuantizeConfig(
            "tensorrt", RangeConfig("minmax", symmetric=True), equalize=False, compensate=False, keep_float=NONE
        )
        return quantize(graph, frames, config, no_progress).model
    return graph


def test_an_interrupt_in_a_callback_cancels_a_build(library: Library, bundle: Bundle) -> None:
    """The library loses the exception that Python would raise there."""

    def interrupt(what: str, done: int, total: int | None) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(library, bundle, ("labels", "void"), BuildOptions(), progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_parses_and_builds(name: str, library: Library, tmp_path: Path) -> None:
    contract, graph = exported(name, tmp_path)  # once, for the four precisions and both engines
    for precision in PRECISIONS:
        path = tmp_path / f"{precision}.onnx"
        onnx.save(converted(graph, precision), path)
        bundle = save_bundle(replace(contract, precision=precision), {GRAPH_FILE: path}, tmp_path / precision)
        engines = engine_outputs(bundle.contract)
        if precision != "fp32":  # the engine of all outputs has every operator of the other one
            engines = {EVERYTHING: engines[EVERYTHING]}
        for engine, outputs in engines.items():
            built = build_engine(library, bundle, outputs, BuildOptions())
            print(f"{name} {precision} {engine}: {built.facts['layers']} layers, {built.facts['build_s']} s")
            assert built.facts["plan_bytes"] > 100_000 and built.facts["layers_by_device"].keys() == {"GPU"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_both_forms_of_argmax_and_layers_in_float_build(precision: str, library: Library, tmp_path: Path) -> None:
    contract, graph = exported("mide_net", tmp_path, BUNDLE_SCORES)  # k-means has an ArgMax of its own
    if precision == "fp16":
        model = in_half_precision(graph, precision, layers_in_half(graph, precision)[:2])
    else:
        model = converted(graph, precision)
    compared = with_comparisons(model)
    assert "ArgMax" not in {node.op_type for node in compared.graph.node}
    onnx.save(compared, tmp_path / GRAPH_FILE)
    files = {GRAPH_FILE: tmp_path / GRAPH_FILE}
    bundle = save_bundle(replace(contract, precision=precision), files, tmp_path / "compare")
    built = build_engine(library, bundle, engine_outputs(bundle.contract)["labels"], BuildOptions())
    assert built.facts["plan_bytes"] > 100_000
