"""Engines that cameras share: loaded once, with the outputs of each camera's own frames and independent cleanup."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from faulty_backend import TABLE_ENTRY, FaultyBackend
from painted_frames import BLUE, GREEN, HEIGHT_PX, OLIVE, RED, WIDTH_PX

from anomseg_ros.backends import BACKENDS, open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.detector import Detector
from anomseg_ros.errors import BackendError
from anomseg_ros.node import engines as engines_module
from anomseg_ros.node.engines import Engines

OPTIONS = BackendOptions(threads=1)
OUTPUTS = ("labels", "void")
ENGINES = ("onnxruntime", "openvino")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FaultyBackend]:
    """The backends that the test opens; FaultyBackend replaces onnxruntime in the table."""
    backends: list[FaultyBackend] = []
    real_init = FaultyBackend.__init__

    def counting(self: FaultyBackend, bundle: Bundle, options: BackendOptions) -> None:
        real_init(self, bundle, options)
        backends.append(self)

    monkeypatch.setitem(BACKENDS, "onnxruntime", TABLE_ENTRY)
    monkeypatch.setattr(FaultyBackend, "__init__", counting)
    return backends


def frame_of(color: tuple[int, int, int], seed: int) -> np.ndarray:
    """A frame of one colour with patches of the others."""
    frame = np.full((HEIGHT_PX, WIDTH_PX, 3), color, np.uint8)
    for other in (RED, BLUE, GREEN, OLIVE):
        top, left = np.random.default_rng(seed + sum(other)).integers(0, 100, 2)
        frame[top : top + 20, left : left + 20] = other
    return frame


@pytest.mark.parametrize("backend", ENGINES)
def test_cameras_sharing_engine_get_results_of_their_own_frames(painted: Bundle, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    engines, wrong = Engines(), []
    # Different scores, some without labels: the engine computes all of them, and each camera receives its own.
    cameras = [(RED, "void", True), (BLUE, "max_logit", True), (GREEN, "void", False), (OLIVE, "max_logit", False)]
    frames = {color: [frame_of(color, seed) for seed in range(5)] for color, _, _ in cameras}
    alone = open_detector(painted, backend, OPTIONS)
    expected = {color: [alone.detect(frame) for frame in frames[color]] for color, _, _ in cameras}

    def run(color: tuple[int, int, int], score: str, labels: bool) -> None:
        detector = Detector(painted, engines.open(painted, backend, OPTIONS, ("labels", score)))
        for index in [0, 1, 2, 3, 4] * 10:
            answer, right = detector.detect(frames[color][index], [score], labels=labels), expected[color][index]
            same = np.array_equal(answer.scores[score], right.scores[score]) and list(answer.scores) == [score]
            same &= np.array_equal(answer.labels, right.labels) if labels else answer.labels is None
            if not same:
                wrong.append((color, index))

    threads = [threading.Thread(target=run, args=camera) for camera in cameras]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_shared_bundle_is_loaded_once_and_closed_with_last_camera(
    painted: Bundle, opened: list[FaultyBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[FaultyBackend] = []
    monkeypatch.setattr(FaultyBackend, "close", lambda self: closed.append(self))
    engines = Engines()
    one, two = (engines.open(load_bundle(painted.directory), "onnxruntime", OPTIONS, OUTPUTS) for _ in range(2))
    assert len(opened) == 1 and one.turns is two.turns and one.cameras == 2
    one.close()
    assert not closed and two.run(np.zeros((1, HEIGHT_PX, WIDTH_PX, 3), np.uint8), OUTPUTS)[0].shape[1:] == (128, 256)
    two.close()
    assert closed == opened
    engines.open(painted, "onnxruntime", OPTIONS, OUTPUTS)
    assert len(opened) == 2


def test_different_bundles_or_options_get_separate_engines(
    painted: Bundle, opened: list[FaultyBackend], tmp_path: Path
) -> None:
    engines = Engines()
    copy = load_bundle(shutil.copytree(painted.directory, tmp_path / "copy"))
    shares = [
        engines.open(painted, "onnxruntime", OPTIONS, OUTPUTS),
        engines.open(copy, "onnxruntime", OPTIONS, OUTPUTS),
        engines.open(painted, "onnxruntime", BackendOptions(threads=2), OUTPUTS),
    ]
    assert len(opened) == len({id(share.turns) for share in shares}) == 3
    # A bundle that was replaced on disk is another, also at the same path.
    text = (copy.directory / "bundle.yaml").read_text()
    (copy.directory / "bundle.yaml").write_text(text.replace("name: painted", "name: repainted"))
    engines.open(load_bundle(copy.directory), "onnxruntime", OPTIONS, OUTPUTS)
    assert len(opened) == 4


def test_warm_up_runs_once_per_set_of_outputs(painted: Bundle, opened: list[FaultyBackend]) -> None:
    engines = Engines()
    for outputs, runs in ((OUTPUTS, 1), (OUTPUTS, 1), (("void",), 1), (("labels", "max_logit"), 2)):
        engines.open(painted, "onnxruntime", OPTIONS, outputs)
        assert opened[0]._runs == runs


def test_failing_outputs_affect_only_their_camera(
    painted: Bundle, opened: list[FaultyBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, frame = FaultyBackend.run, np.zeros((1, HEIGHT_PX, WIDTH_PX, 3), np.uint8)

    def failing(self: FaultyBackend, tensor: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        if "max_logit" in outputs:
            raise BackendError("no kernel for max_logit")
        return real(self, tensor, outputs)

    engines = Engines()
    one, two = (engines.open(painted, "onnxruntime", OPTIONS, OUTPUTS) for _ in range(2))
    monkeypatch.setattr(FaultyBackend, "run", failing)
    for _ in range(3):
        with pytest.raises(BackendError, match="no kernel"):
            one.run(frame, ("max_logit",))
        assert len(two.run(frame, OUTPUTS)) == 2


def test_abandoned_stuck_engine_is_not_shared_again(
    painted: Bundle, opened: list[FaultyBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "ENGINE_WAIT_S", 0.1)
    engines = Engines()
    stuck, other = (engines.open(painted, "onnxruntime", OPTIONS, OUTPUTS) for _ in range(2))
    monkeypatch.setattr(FaultyBackend, "released", threading.Event())
    frame = np.zeros((1, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    worker = threading.Thread(target=stuck.run, args=(frame, OUTPUTS))
    worker.start()
    while opened[0]._runs == 1:
        pass
    with pytest.raises(BackendError, match=r"has been busy for 0\.1 s and is considered stuck; restart the node"):
        engines.open(painted, "onnxruntime", OPTIONS, ("labels", "max_logit"))
    stuck.abandon()
    other.close()  # and does not close the engine, which is in use
    FaultyBackend.released.set()
    worker.join(5)
    assert not worker.is_alive()
    engines.open(painted, "onnxruntime", OPTIONS, OUTPUTS)
    assert len(opened) == 2
