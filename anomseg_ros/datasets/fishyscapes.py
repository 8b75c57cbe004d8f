"""Fishyscapes' public sets: Lost & Found and Static (Blum et al., IJCV 2021), 0 known, 1 anomaly, 255 void.

Both archives have labels named NNNN_<id>_labels.png. The pictures come from Lost and Found and from Cityscapes. Their
leftImg8bit folder is searched in the dataset's folder, in its subfolders, beside it, and in the folders beside it. As
in the authors' loader (bdl-benchmark, fishyscapes_tfds.py), a Static frame is the Cityscapes picture plus the signed
differences of NNNN_<id>_rgb.npz, clipped to 0..255.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.file_pairs import Sample, files_in, in_order
from anomseg_ros.core.image_files import IMAGE_SUFFIXES
from anomseg_ros.core.pixel_files import read_picture
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.dataset import FLAT_CODES, FileDataset, Found

LABEL_NAME = re.compile(r"(\d+)_(.+)_labels\.png")


class FishyscapesLostFound(FileDataset):
    """Fishyscapes Lost & Found, validation."""

    name = "fs_lost_found"
    splits: ClassVar[Mapping[str, int]] = {"validation": 100}
    default_split = "validation"
    layouts = ("NNNN_<id>_labels.png with leftImg8bit/*/SEQ/<id>_leftImg8bit.png of Lost and Found",)
    folders = ("fishyscapes_lostandfound", "dataset_FishyLAF", "FS_LostFound_full", "fs_lost_found")

    def find_official(self, root: Path) -> Found | None:
        """Return NNNN_<id>_labels.png with the Lost and Found picture of that id."""
        labels = _labels(root)
        if not labels:
            return None
        samples, problems = [], []
        for stem, (id_, path) in labels.items():
            image = find_base_image(root, id_)
            if image is None:
                problems.append(FrameProblem("no base image", path, f"no {id_}_leftImg8bit.png"))
            else:
                samples.append(Sample(stem, image, path))
        return Found("official", tuple(samples), FLAT_CODES, tuple(problems))


class FishyscapesStatic(FileDataset):
    """Fishyscapes Static, validation: objects pasted into Cityscapes."""

    name = "fs_static"
    splits: ClassVar[Mapping[str, int]] = {"validation": 30}
    default_split = "validation"
    layouts = ("NNNN_<id>_labels.png, NNNN_<id>_rgb.npz and leftImg8bit/val/CITY/<id>_leftImg8bit.png of Cityscapes",)
    folders = ("fs_static", "fs_val_v3", "fishyscapes-3.0.0", "dataset_FishyStatic")

    def find_official(self, root: Path) -> Found | None:
        """Return NNNN_<id>_labels.png with NNNN_<id>_rgb.npz and the Cityscapes picture of that id."""
        labels = _labels(root)
        overlays = {path.name.removesuffix("_rgb.npz"): path for path in root.glob("*_rgb.npz")}
        if not labels or not overlays:
            return None
        samples = tuple(
            Sample(stem, overlays[stem], path, find_base_image(root, id_))
            for stem, (id_, path) in labels.items()
            if stem in overlays
        )
        problems = [
            *(FrameProblem("labels without an image", labels[stem][1]) for stem in labels if stem not in overlays),
            *(FrameProblem("image without labels", overlays[stem]) for stem in in_order(set(overlays) - set(labels))),
        ]
        return Found("official", samples, FLAT_CODES, tuple(problems))

    def read_image(self, sample: Sample) -> RgbImage:
        """Return the Cityscapes picture with the object in it."""
        if sample.image_path.suffix != ".npz":
            return super().read_image(sample)
        pixels = _read_overlay(sample.image_path)
        if _is_complete(pixels):
            return np.ascontiguousarray(pixels, np.uint8)
        if sample.base_path is None:
            raise FrameProblem("no base image", sample.image_path)
        base = read_picture(sample.base_path)
        if base.shape != pixels.shape:
            raise FrameProblem("unreadable", sample.image_path, f"{pixels.shape} on a picture of {base.shape}")
        return np.clip(base.astype(np.int32) + pixels.astype(np.int32), 0, 255).astype(np.uint8)


def find_base_image(root: Path, id_: str) -> Path | None:
    """Return the leftImg8bit picture of a Lost and Found or Cityscapes id, None if there is none."""
    scene = id_.rsplit("_", 2)[0]
    for folder in (root, *_left_folders(root)):
        for place in (folder, *sorted(folder.glob(f"*/{scene}")), folder / scene):
            for suffix in IMAGE_SUFFIXES:
                path = place / f"{id_}_leftImg8bit{suffix}"
                if path.is_file():
                    return path
    return None


def _left_folders(root: Path) -> list[Path]:
    around = (root, root.resolve().parent)
    patterns = ("leftImg8bit", "*/leftImg8bit")
    return [path for place in around for pattern in patterns for path in sorted(place.glob(pattern)) if path.is_dir()]


def _labels(root: Path) -> dict[str, tuple[str, Path]]:
    """Return NNNN_<id> -> (<id>, path), in order."""
    matches = {path: LABEL_NAME.fullmatch(path.name) for path in files_in(root)}
    found = {path.name.removesuffix("_labels.png"): (match[2], path) for path, match in matches.items() if match}
    return {stem: found[stem] for stem in in_order(found)}


def _read_overlay(path: Path) -> npt.NDArray[np.generic]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels: npt.NDArray[np.generic] = archive["rgb"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise FrameProblem("unreadable", path, f"expected an npz archive with the array 'rgb': {error}") from None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not np.issubdtype(pixels.dtype, np.number):
        raise FrameProblem("unreadable", path, f"'rgb' is {pixels.dtype} {pixels.shape}; expected (H, W, 3)")
    return pixels


def _is_complete(pixels: npt.NDArray[np.generic]) -> bool:
    """Return whether these are whole pictures, as in some copies. Differences are signed and mostly 0."""
    return pixels.dtype == np.uint8 and np.count_nonzero(pixels) * 2 > pixels.size
