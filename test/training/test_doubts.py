from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_trees import own_folder
from tiny_runs import run, tiny_config, write_frames

from anomseg_ros.core.labels import CAMVID
from anomseg_ros.datasets import open_dataset
from anomseg_ros.errors import ConfigError, DatasetError
from anomseg_ros.training.doubts import find_doubts, require_other_frames
from anomseg_ros.training.frame_cache import Frames
from anomseg_ros.training.loop import open_sets


def frames(count: int, seed: int = 0, classes: int = 11, prefix: str = "") -> Frames:
    """Return noise that shows the first `classes` classes of CamVid."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 16, 24, 3), dtype=np.uint8)
    counts = np.zeros(256, np.int64)
    counts[:classes] = counts[255] = 7
    ids = tuple(f"{prefix}{number}" for number in range(count))
    return Frames(images, np.zeros((count, 16, 24), np.uint8), ids, counts, CAMVID)


def test_equal_frames_are_refused_whatever_their_names() -> None:
    training, validation = frames(6), frames(3, seed=1, prefix="v")
    require_other_frames(training, validation)
    validation.images[2] = training.images[4]
    with pytest.raises(DatasetError, match=r"1 of 3 validation frames are training frames, too .*'v2' is '4'"):
        require_other_frames(training, validation)


def test_frames_of_another_dataset_raise_doubts(tmp_path: Path) -> None:
    camvid = open_dataset("camvid", write_frames(tmp_path), "train")
    foreign = find_doubts(camvid, frames(6, classes=3), frames(3))
    assert foreign.foreign and len(foreign.sentences) == 3
    assert foreign.sentences[0] == "6 training frames, 367 are published of camvid train"
    assert "only 3 of the 11 classes of camvid occur: are these frames of camvid?" in foreign.sentences[1]
    assert "6 training frames and 3 validation frames are too few to trust" in foreign.sentences[2]
    part = find_doubts(camvid, frames(100), frames(20))
    assert not part.foreign and part.sentences == ("100 training frames, 367 are published of camvid train",)
    assert find_doubts(camvid, frames(367), frames(101)).sentences == ()


def test_few_frames_of_ones_own_raise_doubts(tmp_path: Path) -> None:
    own = open_dataset("folder", own_folder(tmp_path, ["a", "b"]), "train")
    assert find_doubts(own, frames(60), frames(12)).sentences == ()
    for counts, few in (((49, 12), "49 training frames are"), ((60, 9), "9 validation frames are")):
        (text,) = find_doubts(own, *map(frames, counts)).sentences
        assert text.startswith(few) and "calibrate threshold --frames" in text


def test_a_run_refuses_the_frames_that_it_validates_on(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data")
    config = tiny_config(tmp_path, data, data={"validation_split": "train"})
    with pytest.raises(DatasetError, match="6 of 6 validation frames are training frames"):
        run(config, tmp_path / "out")


def test_a_run_says_and_returns_its_doubts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"a/{number}" for number in range(5)]
    data = {"dataset": "folder", "allow_partial": False}
    config = tiny_config(tmp_path, own_folder(tmp_path / "data", names), data=data, run={"epochs": 1})
    result = run(config, tmp_path / "out")
    (text,) = result.doubts.sentences
    assert "4 training frames and 1 validation frames are too few to trust" in text and text in caplog.text
    assert "the last fifth of the drive is 'val' (1 frames)" in caplog.text
    assert result.num_classes == 2


def test_validation_needs_the_classes_of_training(tmp_path: Path) -> None:
    first = own_folder(tmp_path / "first", ["a", "b"])
    text = (first / "classes.yaml").read_text()
    other = own_folder(tmp_path / "other", ["c", "d"], classes=text.replace("name: dog", "name: cat"))
    data = {"dataset": "folder", "validation_path": str(other)}
    with pytest.raises(ConfigError, match="have different classes; give both the same ones"):
        open_sets(tiny_config(tmp_path, first, data=data).data)
