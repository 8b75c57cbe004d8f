"""The backend tensorrt on fakes of NVIDIA's libraries, whose engines run through ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from backend_contract import BackendContract
from fake_cudart import COPY_MS, Gpu
from fake_tensorrt_runtime import COMPUTE_MS, FakeRuntime, install
from small_bundles import small_bundle
from tensorrt_places import DEFAULT, by_pycuda, frame, on_a_card, on_a_jetson, opened

from anomseg_ros.backends import open_backend
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.detector import Backend

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("place", [on_a_card, on_a_jetson, by_pycuda], scope="class")
class TestTensorRt(BackendContract):
    name = "tensorrt"

    @pytest.fixture(autouse=True)
    def _placed(self, place: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
        place(monkeypatch)

    def open(self, bundle: Bundle, **options: object) -> Backend:
        return super().open(bundle, build_engine="configure", **options)

    def test_outputs_are_those_of_onnx_runtime(self, bundle: Bundle) -> None:
        names = ["labels", *bundle.contract.score_names]
        ours, theirs = self.open(bundle), open_backend("onnxruntime", bundle)
        for seed in range(3):
            for one, other in zip(ours.run(frame(seed), names), theirs.run(frame(seed), names), strict=True):
                assert one.dtype == other.dtype and one == pytest.approx(other, abs=1e-5)


def test_a_frame_is_one_launch_and_one_wait(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    backend.run(frame(), DEFAULT)
    assert backend.facts()["cuda_graph"] == "yes"
    fake.cudart.calls.clear()
    fake.counts.clear()
    backend.run(frame(), DEFAULT)
    expected = ["cudaSetDevice", "cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"]
    assert fake.cudart.names("cudaEventElapsedTime") == expected
    assert fake.counts == {"computed": 1}


def test_the_graph_holds_upload_compute_and_the_downloads_that_are_wanted(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    backend.run(frame(), DEFAULT)
    facts = backend.facts()
    times = [float(facts[name]) for name in ("upload_ms", "compute_ms", "download_ms")]
    assert times == [COPY_MS, COMPUTE_MS, 2 * COPY_MS]
    backend.run(frame(), ["labels"])  # no new graph for less
    assert float(backend.facts()["download_ms"]) == 2 * COPY_MS


def test_a_gpu_that_shares_the_memory_copies_nothing(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    fake = install(monkeypatch, Gpu(integrated=True))
    backend = opened(bundle)
    for outputs in (DEFAULT, ["msp"], ["labels", "energy"]):
        backend.run(frame(), outputs)
    assert fake.cudart.counts["cudaMemcpyAsync"] == fake.cudart.counts["cudaMalloc"] == 0
    facts = backend.facts()
    assert [float(facts[name]) for name in ("upload_ms", "download_ms")] == [0, 0] and facts["cuda_graph"] == "yes"


@pytest.mark.parametrize("integrated", [False, True])
def test_a_capture_that_fails_is_said_and_frames_go_on(
    integrated: bool, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    expected = open_backend("onnxruntime", bundle).run(frame(), DEFAULT)
    fake = install(monkeypatch, Gpu(integrated=integrated))
    fake.faults.capture = "operation not permitted when stream is capturing"
    backend = opened(bundle)
    for _ in range(3):
        for one, other in zip(backend.run(frame(), DEFAULT), expected, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert "no: TensorRT 10.3.0 cannot run the engine" in backend.facts()["cuda_graph"]
    assert backend.actual == backend.requested, "it is the same engine on the same GPU"


def test_pycuda_says_that_it_enqueues_each_step(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    by_pycuda(monkeypatch)
    backend = opened(bundle)
    backend.run(frame(), DEFAULT)
    facts = backend.facts()
    assert facts["cuda_binding"] == "pycuda" and "pycuda cannot capture graphs" in facts["cuda_graph"]
    assert float(facts["compute_ms"]) == COMPUTE_MS


def test_memory_stays_where_it_was_over_ten_thousand_frames(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    pixels = frame()
    for outputs in (DEFAULT, ["labels", "msp"]):
        backend.run(pixels, outputs)
    fake.executes = False
    before = fake.cudart.used[0], len(fake.cudart.host), len(fake.cudart.objects)
    for index in range(10_000):
        backend.run(pixels, DEFAULT if index % 100 else ["labels", "msp" if index % 200 else "energy"])
    assert (fake.cudart.used[0], len(fake.cudart.host), len(fake.cudart.objects)) == before
    backend.close()
    assert (fake.cudart.used[0], len(fake.cudart.host), len(fake.cudart.objects)) == (0, 0, 0)


def test_two_cameras_at_once_have_their_own_answers(fake: FakeRuntime, bundle: Bundle) -> None:
    backend, alone = opened(bundle), open_backend("onnxruntime", bundle)
    asked = {0: DEFAULT, 1: ("labels", "msp"), 2: ("energy",)}
    right = {seed: alone.run(frame(seed), names) for seed, names in asked.items()}
    wrong: list[object] = []

    def camera(seed: int) -> None:
        try:
            for _ in range(30):
                for got, expected in zip(backend.run(frame(seed), asked[seed]), right[seed], strict=True):
                    if not np.allclose(got, expected, atol=1e-5):
                        wrong.append(seed)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=camera, args=(seed,)) for seed in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_the_second_gpu(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    fake = install(monkeypatch, Gpu(), Gpu("Fake H100", (9, 0), 132))
    backend = opened(bundle, device=1)
    thread = threading.Thread(target=backend.run, args=(frame(), DEFAULT))
    thread.start()
    thread.join()
    assert fake.cudart.used[0] == 0 < fake.cudart.used[1]
    assert backend.facts()["gpu"] == "Fake H100 (compute 9.0, 132 multiprocessors)"


@pytest.mark.slow
def test_two_bundles_share_a_gpu_from_two_threads(fake: FakeRuntime, bundle: Bundle, tmp_path: Path) -> None:
    """One is opened and captured while the other allocates and runs."""
    other, wrong = small_bundle("enet", tmp_path), list[object]()

    def camera(each: Bundle, seed: int) -> None:
        try:
            expected = open_backend("onnxruntime", each).run(frame(seed), DEFAULT)
            for _ in range(3):
                backend = opened(each)
                for _ in range(5):
                    for got, right in zip(backend.run(frame(seed), DEFAULT), expected, strict=True):
                        if not np.allclose(got, right, atol=1e-4):
                            wrong.append(each.contract.name)
                if backend.facts()["cuda_graph"] != "yes":
                    wrong.append(backend.facts())
                backend.close()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=camera, args=(each, seed)) for seed, each in enumerate((bundle, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and fake.cudart.used[0] == 0
