"""The contract of backends, for tests to inherit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fitted_networks import BUNDLE_SCORES

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import CONTRACT_FILE, GRAPH_FILE, Bundle, load_bundle, sha256_of
from anomseg_ros.core.detector import Backend, Detector
from anomseg_ros.errors import BackendError, ConfigError, FrameError


class BackendContract:
    """Checks the contract of a backend. Subclasses set `name`, and `program_file` if it is not the graph."""

    name: str
    program_file = GRAPH_FILE

    def open(self, bundle: Bundle, **options: object) -> Backend:
        return open_backend(self.name, bundle, BackendOptions(**options))  # type: ignore[arg-type]

    @pytest.fixture()
    def bundle(self, tiny_bundle: Path) -> Bundle:
        return load_bundle(tiny_bundle)

    @pytest.fixture()
    def tensor(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 256, (1, 64, 128, 3), dtype=np.uint8)

    def test_outputs_are_in_the_requested_order(self, bundle: Bundle, tensor: np.ndarray) -> None:
        backend = self.open(bundle)
        names = ["msp", "labels", "void"]
        msp, labels, void = backend.run(tensor, names)
        assert [array.shape for array in (msp, labels, void)] == [(1, 64, 128)] * 3
        assert [array.dtype for array in (msp, labels, void)] == [np.float32, np.uint8, np.float32]
        (alone,) = backend.run(tensor, ["void"])
        assert (alone == void).all()

    def test_scores_are_in_the_ranges_valid_for_any_logits(self, bundle: Bundle, tensor: np.ndarray) -> None:
        # test_export.py has the logits and compares the scores with the reference.
        backend = self.open(bundle)
        outputs = dict(zip(BUNDLE_SCORES, backend.run(tensor, list(BUNDLE_SCORES)), strict=True))
        assert ((outputs["void"] >= 0) & (outputs["void"] <= 1)).all()
        assert ((outputs["msp"] >= 0) & (outputs["msp"] < 1)).all()
        assert ((outputs["max_entropy"] >= 0) & (outputs["max_entropy"] <= np.log(19) + 1e-5)).all()
        assert (outputs["energy"] <= outputs["max_logit"] + 1e-5).all()

    def test_same_input_gives_the_same_output(self, bundle: Bundle, tensor: np.ndarray) -> None:
        backend = self.open(bundle)
        first = backend.run(tensor, ["labels", *BUNDLE_SCORES])
        second = backend.run(tensor, ["labels", *BUNDLE_SCORES])
        assert all((a == b).all() for a, b in zip(first, second, strict=True))

    def test_outputs_are_not_overwritten_by_the_next_frame(self, bundle: Bundle, tensor: np.ndarray) -> None:
        backend = self.open(bundle)
        (kept,) = backend.run(tensor, ["void"])
        before = kept.copy()
        backend.run(255 - tensor, ["void"])
        assert (kept == before).all()

    def test_requested_and_actual_engine_are_reported(self, bundle: Bundle) -> None:
        backend = self.open(bundle)
        assert backend.requested.startswith(f"{self.name}:")
        assert backend.actual.startswith(f"{self.name}:")

    def test_number_of_threads_does_not_change_the_outputs(self, bundle: Bundle, tensor: np.ndarray) -> None:
        (one,) = self.open(bundle, threads=1).run(tensor, ["void"])
        (two,) = self.open(bundle, threads=2).run(tensor, ["void"])
        assert one == pytest.approx(two, abs=1e-5)

    def test_tensor_of_another_size_is_refused(self, bundle: Bundle) -> None:
        with pytest.raises(BackendError, match=r"\(1, 32, 32, 3\)"):
            self.open(bundle).run(np.zeros((1, 32, 32, 3), np.uint8), ["labels"])

    def test_invalid_program_file_is_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(bundle.directory, copy)
        (copy / self.program_file).write_bytes(b"this is no program")
        old, new = bundle.contract.files[self.program_file], sha256_of(copy / self.program_file)
        (copy / CONTRACT_FILE).write_text((copy / CONTRACT_FILE).read_text().replace(old, new))
        with pytest.raises(BackendError, match=rf"{self.program_file} cannot be loaded.*anomseg (export|quantize)"):
            self.open(load_bundle(copy))

    def test_unknown_backend_error_suggests_the_closest(self, bundle: Bundle) -> None:
        with pytest.raises(ConfigError, match=f"known: {self.name}"):
            open_backend(self.name[:-2] + "x", bundle)

    def test_detector_accepts_any_frame_size(self, bundle: Bundle) -> None:
        detector = Detector(bundle, self.open(bundle))
        frame = np.random.default_rng(2).integers(0, 256, (75, 133, 3), dtype=np.uint8)
        at_network = detector.detect(frame)
        assert at_network.labels is not None and at_network.labels.shape == (64, 128)
        assert set(at_network.scores) == set(BUNDLE_SCORES)
        assert at_network.network_ms > 0
        at_source = detector.detect(frame, ["void"], source_size=True)
        assert at_source.labels is not None and at_source.labels.shape == (75, 133)
        assert list(at_source.scores) == ["void"] and at_source.scores["void"].shape == (75, 133)
        assert detector.detect(frame, [], labels=False).labels is None

    def test_detector_refuses_invalid_frames_and_continues(self, bundle: Bundle) -> None:
        detector = Detector(bundle, self.open(bundle))
        with pytest.raises(FrameError):
            detector.detect(np.zeros((0, 5, 3), np.uint8))
        with pytest.raises(ConfigError, match="unknown score"):
            detector.detect(np.zeros((5, 5, 3), np.uint8), ["nothing"])
        assert detector.detect(np.zeros((5, 5, 3), np.uint8)).labels is not None
