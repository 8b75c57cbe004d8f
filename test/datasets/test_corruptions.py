"""Common corruptions: their kinds, and equal results in any thread, process and order of calls."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest

from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.cached import keep_frames
from anomseg_ros.datasets.corruptions import (
    GROUPS,
    KINDS,
    REQUIREMENT,
    Corruption,
    corrupt_dataset,
    corrupted,
    corruptions_of,
    library_version,
)
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.errors import ConfigError, DatasetError


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    pytest.importorskip("imagecorruptions", reason="needs anomseg_ros[corruptions]")
    noise = np.random.default_rng(0).integers(0, 256, (41, 67, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5), np.uint8)


def test_corruptions_of_names_and_groups() -> None:
    assert len(KINDS) == 19 and len(set(KINDS)) == 19
    assert len(corruptions_of(["common"], [1, 2, 3, 4, 5])) == 75 and len(corruptions_of(["all"], [2])) == 19
    assert corruptions_of(["fog", "noise", "fog"], [3, 1, 3]) == tuple(
        Corruption(kind, severity) for kind in (*GROUPS["noise"], "fog") for severity in (1, 3)
    )
    assert corruptions_of([], [1]) == () and str(Corruption("fog", 3)) == "fog 3"


def test_unknown_kind_or_severity_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown corruption 'fogg'; known: fog"):
        corruptions_of(["fogg"], [1])
    with pytest.raises(ConfigError, match="unknown corruption 'weather'"):
        Corruption("weather", 1)
    for severity in (0, 6):
        with pytest.raises(ConfigError, match=f"severity is {severity}"):
            Corruption("fog", severity)


def test_kinds_equal_those_of_the_library(image: np.ndarray) -> None:
    import imagecorruptions

    assert tuple(imagecorruptions.get_corruption_names("all")) == KINDS
    for group in ("noise", "blur", "weather", "digital"):
        assert tuple(imagecorruptions.get_corruption_names(group)) == GROUPS[group]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_repeatable_and_grows_with_severity(
    kind: str, image: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    before, state = image.copy(), np.random.get_state(legacy=True)[1].copy()
    first, again = (corrupted(image, Corruption(kind, 3), seed=7) for _ in range(2))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, image)
    assert np.array_equal(image, before) and capsys.readouterr().out == ""
    assert np.array_equal(np.random.get_state()[1], state)
    if kind in (*GROUPS["noise"], "glass_blur", "snow", "frost", "fog", "elastic_transform", "speckle_noise"):
        assert not np.array_equal(first, corrupted(image, Corruption(kind, 3), seed=8))
    if kind != "saturate":  # the first two severities remove colour, the others add it
        mild, strong = (corrupted(image, Corruption(kind, severity), seed=7) for severity in (1, 5))
        lost = [float(np.abs(one.astype(int) - image).mean()) for one in (mild, strong)]
        assert lost[0] < lost[1]


def test_small_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="67x31 is too small for fog 1"):
        corrupted(np.ascontiguousarray(image[:31]), Corruption("fog", 1), 0)


def test_missing_library_error_names_the_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(DatasetError, match=r"anomseg_ros\[corruptions\].*--no-deps 'imagecorruptions-imaug>="):
        library_version()


def test_corrupted_dataset_is_equal_in_any_thread_process_and_order(image: np.ndarray) -> None:
    plain = open_named("synthetic=4:3")
    noisy = corrupt_dataset(keep_frames(plain, 10**8), Corruption("gaussian_noise", 2))
    other = corrupt_dataset(plain, Corruption("gaussian_noise", 3))
    copy = cast(Dataset, pickle.loads(pickle.dumps(noisy)))
    assert len(noisy) == len(plain) and noisy.frame_id(1) == plain.frame_id(1) and noisy.path == plain.path
    frames = [noisy.load(index) for index in (0, 1, 2)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(noisy.load, (2, 1, 0, 1)))
    for index, again in zip((2, 1, 0, 1), threaded, strict=True):
        assert np.array_equal(frames[index].image, again.image)
    clean, shipped = plain.load(1), copy.load(1)
    assert np.array_equal(shipped.image, frames[1].image) and not np.array_equal(clean.image, shipped.image)
    assert clean.labels is not None and np.array_equal(clean.labels, shipped.labels)
    assert not np.array_equal(other.load(1).image, shipped.image)
    # The noise differs between frames.
    assert not np.array_equal(
        frames[0].image.astype(int) - plain.load(0).image, frames[1].image.astype(int) - clean.image
    )


def test_makefile_and_docs_state_the_requirement() -> None:
    root = Path(__file__).resolve().parents[2]
    for name in ("Makefile", "docs/evaluate.md"):
        assert f"--no-deps '{REQUIREMENT}'" in (root / name).read_text()
