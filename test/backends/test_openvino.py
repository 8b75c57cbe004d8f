"""The openvino backend: the contract, agreement with onnxruntime, and the reported device."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_bundles import small_bundle, street_frames

from anomseg_ros.backends import open_backend, open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import (
    CONTRACT_FILE,
    GRAPH_FILE,
    Bundle,
    Provenance,
    load_bundle,
    save_bundle,
    sha256_of,
)
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.parity import RELATIVE_TOLERANCE, TYPICAL_LOGIT, UNPOOLING_SHARE

pytestmark = pytest.mark.slow

# Importing openvino directly would send telemetry.
openvino_backend = pytest.importorskip("anomseg_ros.backends.openvino", reason="needs anomseg_ros[openvino]")

NETWORKS = ("erfnet", "enet", "mide_net", "bisenet_v1", "bisenet_v2")
ONE_THREAD = BackendOptions(threads=1)


def detectors(bundle: Bundle) -> tuple[Detector, Detector]:
    """Return detectors of the bundle on onnxruntime and on openvino."""
    return open_detector(bundle, "onnxruntime", ONE_THREAD), open_detector(bundle, "openvino", ONE_THREAD)


@pytest.fixture(scope="module")
def frames() -> list[RgbImage]:
    return street_frames(6)


@pytest.mark.parametrize("network", NETWORKS)
def test_float_outputs_equal_those_of_onnxruntime(network: str, frames: list[RgbImage], tmp_path: Path) -> None:
    reference, detector = detectors(small_bundle(network, tmp_path))
    share = UNPOOLING_SHARE if network == "enet" else 0.0
    for frame in frames[:2]:
        one, two = reference.detect(frame), detector.detect(frame)
        # Two classes may be nearly equal in some pixels.
        assert (one.labels != two.labels).mean() <= max(share, 1e-3)
        for name, score in one.scores.items():
            tolerance = RELATIVE_TOLERANCE * max(TYPICAL_LOGIT, float(np.abs(one.scores["max_logit"]).max()))
            assert (np.abs(two.scores[name] - score) > tolerance).mean() <= share, name


@pytest.fixture(scope="module")
def int8_erfnet(frames: list[RgbImage], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("erfnet")
    return int8_bundle(small_bundle("erfnet", folder), frames[:4], folder)


@pytest.mark.slow
def test_int8_outputs_are_close_to_those_of_onnxruntime(int8_erfnet: Bundle, frames: list[RgbImage]) -> None:
    reference, detector = detectors(int8_erfnet)
    for frame in frames[4:]:
        one, two = reference.detect(frame), detector.detect(frame)
        assert (one.labels == two.labels).mean() > 0.97
        assert np.abs(one.scores["void"] - two.scores["void"]).mean() < 1e-3
        assert np.abs(one.scores["max_logit"] - two.scores["max_logit"]).mean() < 0.02


@pytest.mark.slow
def test_int8_layers_are_computed_in_int8(int8_erfnet: Bundle) -> None:
    backend = open_backend("openvino", int8_erfnet, ONE_THREAD)
    infos = [node.get_rt_info() for node in backend._compiled.get_runtime_model().get_ops()]  # type: ignore[attr-defined]
    precisions = [str(info["runtimePrecision"].value) for info in infos if info["layerType"].value == "Convolution"]
    assert precisions.count("i8") + precisions.count("u8") > 0.9 * len(precisions)


@pytest.mark.slow
def test_int8_unpooling_is_as_accurate_as_onnxruntime(frames: list[RgbImage], tmp_path: Path) -> None:
    # Trained weights, because rounding changes the maxima of random ones.
    network = load_checkpoint(find_bundle("enet-camvid") / "checkpoint.safetensors", "enet", 12)
    config = ExportConfig("enet", 12, 11, "camvid", height_px=64, width_px=128, scores=("void", "max_logit"))
    parent, _ = export_network(network, "enet", config, tmp_path / "float", Provenance())
    reference, detector = detectors(int8_bundle(parent, frames[:4], tmp_path))
    for frame in frames[4:]:
        expected = open_detector(parent, options=ONE_THREAD).detect(frame)
        one, two = reference.detect(frame), detector.detect(frame)
        assert (one.labels == two.labels).mean() > 0.9
        assert (two.labels == expected.labels).mean() > (one.labels == expected.labels).mean() - 0.03
        by_onnxruntime, by_openvino = (
            np.abs(run.scores["void"] - expected.scores["void"]).mean() for run in (one, two)
        )
        assert by_openvino < 1.3 * by_onnxruntime


def int8_bundle(parent: Bundle, frames: list[RgbImage], folder: Path) -> Bundle:
    import onnx

    from anomseg_ros.compression.quantize_onnx import QuantizeConfig, quantize

    tensors = [frame[np.newaxis] for frame in frames]
    made = quantize(onnx.load(parent.graph_path), tensors, QuantizeConfig(keep_float="none"), lambda *told: None)
    onnx.save(made.model, folder / GRAPH_FILE)
    compression = {"settings": {"weight_bits": QuantizeConfig().bits}}
    contract = replace(parent.contract, precision="int8", compression=compression)
    return save_bundle(contract, {GRAPH_FILE: folder / GRAPH_FILE}, folder / "int8")


def test_float_bundle_is_computed_in_float32(tiny_bundle: Path) -> None:
    # OpenVINO prefers bfloat16 if the CPU supports it. On such a CPU this fails without the setting.
    backend = open_backend("openvino", load_bundle(tiny_bundle))
    assert backend.requested == backend.actual == "openvino:cpu"
    assert backend._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"  # type: ignore[attr-defined]


def test_other_precision_is_reported(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = openvino_backend.settings
    changed = {"INFERENCE_PRECISION_HINT": "bf16"}
    monkeypatch.setattr(openvino_backend, "settings", lambda *given: ours(*given) | changed)
    try:
        backend = open_backend("openvino", load_bundle(tiny_bundle))
    except BackendError as error:
        pytest.skip(f"this CPU has no bfloat16: {error}")
    precision = backend._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()  # type: ignore[attr-defined]
    if precision == "f32":
        pytest.skip("this CPU has no bfloat16")
    assert backend.actual == f"openvino:cpu ({precision})" != backend.requested


@pytest.mark.parametrize("threads", [1, 2])
def test_requested_threads_are_used(threads: int, tiny_bundle: Path) -> None:
    backend = open_backend("openvino", load_bundle(tiny_bundle), BackendOptions(threads=threads))
    compiled = backend._compiled  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_only_requested_outputs_are_compiled(tiny_bundle: Path) -> None:
    detector = open_detector(tiny_bundle, "openvino", ONE_THREAD)
    frame = np.zeros((64, 128, 3), np.uint8)

    def computed() -> set[str]:
        compiled = detector.backend._compiled  # type: ignore[attr-defined]
        names = {name for output in compiled.outputs for name in output.names}  # includes the names of nodes
        return names & {output.name for output in detector.bundle.contract.outputs}

    assert computed() == {"labels", "void"}
    detector.detect(frame, ["msp"])
    assert computed() == {"labels", "msp"}
    for scores, labels in (([], True), (["msp"], False)):  # no new compilation is needed
        before = detector.backend._compiled  # type: ignore[attr-defined]
        detector.detect(frame, scores, labels=labels)
        assert detector.backend._compiled is before  # type: ignore[attr-defined]


def test_unknown_provider_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="unknown openvino provider 'cuda'; known: "):
        open_detector(tiny_bundle, "openvino", BackendOptions(provider="cuda"))


def test_missing_device_falls_back_and_is_reported(tiny_bundle: Path) -> None:
    if any(name.startswith("GPU") for name in openvino_backend.ov.Core().available_devices):
        pytest.skip("this machine has a GPU that openvino runs on")
    detector = open_detector(tiny_bundle, "openvino", BackendOptions(provider="gpu"))
    assert detector.backend.requested == "openvino:gpu"
    assert detector.backend.actual == "openvino:cpu"
    assert detector.detect(np.zeros((8, 8, 3), np.uint8)).labels is not None


def test_foreign_onnx_file_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "foreign", value[:1], value[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "foreign.onnx")
    with pytest.raises(BackendError, match="is not an anomseg graph: its inputs are"):
        open_detector(with_graph(tiny_bundle, (tmp_path / "foreign.onnx").read_bytes(), tmp_path), "openvino")


def test_unsupported_operator_error_names_it(tiny_bundle: Path, tmp_path: Path) -> None:
    from onnx import load_model_from_string

    model = load_model_from_string((tiny_bundle / GRAPH_FILE).read_bytes())
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(BackendError, match=r"cannot be loaded.*Unheard.*--backend onnxruntime"):
        open_detector(with_graph(tiny_bundle, model.SerializeToString(), tmp_path), "openvino")


def test_truncated_graph_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    whole = (tiny_bundle / GRAPH_FILE).read_bytes()
    with pytest.raises(BackendError, match=r"model\.onnx cannot be loaded by openvino"):
        open_detector(with_graph(tiny_bundle, whole[: len(whole) // 2], tmp_path), "openvino")


def with_graph(source: Path, graph: bytes, folder: Path) -> Path:
    """Copy a bundle with another graph."""
    copy = Path(shutil.copytree(source, folder / "copy"))
    (copy / GRAPH_FILE).write_bytes(graph)
    old = load_bundle(source).contract.files[GRAPH_FILE]
    (copy / CONTRACT_FILE).write_text((copy / CONTRACT_FILE).read_text().replace(old, sha256_of(copy / GRAPH_FILE)))
    return copy


@pytest.mark.parametrize(("module", "reports"), [("openvino", True), ("anomseg_ros.backends.openvino", False)])
def test_import_sends_no_telemetry(module: str, reports: bool, tmp_path: Path) -> None:
    # A fake telemetry package that writes a file. The first case shows that openvino imports it.
    package = tmp_path / "openvino_telemetry"
    (package / "backend").mkdir(parents=True)
    (package / "__init__.py").write_text("open(__file__ + '.sign', 'w').close()\nraise ImportError\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    code = f"{path}; import {module}; print(*(name for name, found in sys.modules.items() if found is None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (package / "__init__.py.sign").exists() == reports
    assert "openvino" not in done.stdout  # the hidden package can be imported afterwards


def test_missing_package_error_states_the_remedy(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['openvino'] = None; from anomseg_ros import cli; "
        f"sys.exit(cli.main(['run', {str(tiny_bundle)!r}, '.', '--backend', 'openvino', '--output', 'never']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tiny_bundle)
    assert done.returncode == 1
    assert "pip install 'anomseg_ros[openvino]'" in done.stderr and "Traceback" not in done.stderr


SIGNAL_AFTER_CLOSE = """
import signal, subprocess, sys, threading
from anomseg_ros.backends import open_backend
from anomseg_ros.core.bundle import load_bundle

signal.signal(signal.SIGCHLD, lambda *_: None)
opened = [open_backend("openvino", load_bundle(sys.argv[1]))]
closing = threading.Thread(target=lambda: opened.pop().close())
closing.start()
closing.join()
subprocess.run([sys.executable, "-c", ""], check=True)
"""


def test_signal_is_handled_after_another_thread_has_closed_the_backend(tiny_bundle: Path) -> None:
    # faulthandler, as pytest enables it, gives the process the signal stack that the plugin replaces.
    words = [sys.executable, "-X", "faulthandler", "-c", SIGNAL_AFTER_CLOSE, str(tiny_bundle)]
    assert subprocess.run(words, timeout=60).returncode == 0
