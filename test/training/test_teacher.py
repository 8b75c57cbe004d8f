"""Networks and bundles as teachers: probabilities at the requested size for every view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anomseg_ros.backends import open_detector
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets import open_dataset
from anomseg_ros.datasets.bundle_teacher import BundleTeacher
from anomseg_ros.datasets.pseudo_label import LabelConfig, label_frame
from anomseg_ros.datasets.pseudo_label_sources import FREE, Unlabelled
from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint
from anomseg_ros.training.teacher import NetworkTeacher

SIZE = (40, 56)
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def save_teacher(folder: Path, classes: int) -> Path:
    torch.manual_seed(1)
    path = folder / f"{classes}.safetensors"
    save_checkpoint(path, build_network("mide_net", classes).eval(), {})
    return path


@pytest.mark.parametrize("classes", [19, 20])
def test_network_teacher_returns_its_softmax_for_each_view(classes: int, tmp_path: Path) -> None:
    path = save_teacher(tmp_path, classes)
    teacher = NetworkTeacher("mide_net", path)
    whole, mirrored, half, _ = teacher.look(IMAGE, IMAGE.shape[:2], (1.0, 0.5), True)
    network = teacher._network
    with torch.inference_mode():
        pixels = torch.from_numpy(IMAGE / np.float32(255)).permute(2, 0, 1)[None]
        expected = network(pixels).softmax(1)[0, :19].numpy()
        of_mirrored = network(pixels.flip(3)).softmax(1)[0, :19].numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    np.testing.assert_allclose(mirrored[:, :, ::-1], of_mirrored, atol=1e-6)
    assert half.shape == whole.shape == (19, 64, 96) and not np.allclose(half, whole, atol=1e-3)
    total = whole.sum(axis=0)
    assert np.allclose(total, 1, atol=1e-5) if classes == 19 else (total < 0.9999).any()
    assert teacher.info.name == "mide_net" and len(teacher.info.sha256) == 64 and "torch" in teacher.info.runs_on


def test_probabilities_have_the_requested_size(tmp_path: Path) -> None:
    views = list(NetworkTeacher("mide_net", save_teacher(tmp_path, 19)).look(IMAGE, SIZE, (1.0,), False))
    assert [view.shape for view in views] == [(19, *SIZE)] and views[0].dtype == np.float32


def test_invalid_teacher_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"trained for 11 classes, not 19.*A teacher has the 19 classes"):
        NetworkTeacher("mide_net", save_teacher(tmp_path, 11))
    with pytest.raises(CheckpointError, match="no checkpoint file at"):
        NetworkTeacher("mide_net", tmp_path / "nowhere.pth")
    with pytest.raises(ConfigError, match="unknown network 'mide'"):
        NetworkTeacher("mide", tmp_path / "nowhere.pth")


def test_bundle_teacher_returns_one_minus_msp(tiny_bundle: Path) -> None:
    detector = open_detector(tiny_bundle)
    teacher = BundleTeacher(detector)
    frame = IMAGE[:64, :96]
    plain, mirrored = teacher.look(frame, detector.detect(frame).labels.shape, (1.0, 0.5), True)
    outputs = detector.detect(frame)
    known = outputs.labels < 19
    assert (plain.argmax(axis=0) == outputs.labels)[known].all() and not plain[:, ~known].any()
    np.testing.assert_allclose(plain.sum(axis=0)[known], 1 - outputs.scores["msp"][known], atol=1e-6)
    turned = detector.detect(np.ascontiguousarray(frame[:, ::-1])).labels
    assert (mirrored[:, :, ::-1].argmax(axis=0) == turned)[turned < 19].all()
    assert teacher.info.sha256 == detector.bundle.contract.program_sha256
    (resized,) = teacher.look(frame, SIZE, (1.0,), False)
    assert resized.shape == (19, *SIZE)


def test_bundle_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'enet-camvid' has the classes sky, building.*a teacher needs the 19"):
        BundleTeacher(open_detector(find_bundle("enet-camvid")))


@pytest.mark.slow
def test_published_teacher_agrees_with_human_labels(shared_data: Path, shared_weights: Path) -> None:
    truth = open_dataset("cityscapes", shared_data / "cityscapes_aachen").load(0)
    teacher = NetworkTeacher("espnetv2", shared_weights / "espnetv2" / "espnetv2_s_2.0_city_1024x512.pth")
    free = Unlabelled(truth.image, np.full(truth.image.shape[:2], FREE, np.uint8), np.ones((256, 19), bool))
    done = label_frame(free, (teacher,), LabelConfig(size_px=(512, 1024), confidence=0.7), known=False)
    expected = truth.labels[1::2, 1::2]
    labelled = (done.labels < 19) & (expected < 19)
    assert labelled.mean() > 0.8
    assert (done.labels == expected)[labelled].mean() > 0.95
