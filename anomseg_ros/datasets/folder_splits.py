"""Splits of a folder of frames: as classes.yaml states them, or the last part of each drive held out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from anomseg_ros.core.class_table import CLASSES_FILE, SplitRule
from anomseg_ros.core.image_files import IMAGE_SUFFIXES
from anomseg_ros.errors import DatasetError, closest_first, reason_of

TRAIN, VALIDATION, ALL = "train", "val", "all"
HELD_OUT_SHARE = 0.2
"""Share of each drive that is held out for validation where no splits are stated."""

_NUMBER = re.compile(r"[-_. ]*\d+(?![^\W_])")
"""A group of digits that no letter follows, unlike the 8 of leftImg8bit."""


def split_frames(ids: Sequence[str], rules: Mapping[str, SplitRule], root: Path) -> dict[str, tuple[str, ...]]:
    """Return the names of the frames of each split.

    Args:
        ids: of all frames, in natural order: paths below images/ without the file's ending.
        rules: of classes.yaml; without any, the last part of each drive is VALIDATION, the others TRAIN.
        root: folder of classes.yaml, which has its lists.

    Raises:
        DatasetError: a frame in two splits, a split without frames, or names that no frame has.
    """
    if not rules:
        return _held_out(ids)
    splits = {name: _frames_of(name, rule, ids, root) for name, rule in rules.items()}
    place: dict[str, str] = {}
    for name, frames in splits.items():
        for frame in frames:
            if frame in place:
                raise DatasetError(
                    f"frame {frame!r} is in the splits {place[frame]!r} and {name!r} of {str(root / CLASSES_FILE)!r}; "
                    "a frame that is trained on tells nothing in a measurement: keep it in one of them"
                )
            place[frame] = name
    return splits


def split_note(ids: Sequence[str], splits: Mapping[str, Sequence[str]], stated: bool) -> str:
    """Return a sentence on how the frames are split, for output; empty if classes.yaml states it for all of them."""
    if not stated:
        sizes = Counter(map(drive_of, ids))
        drives = "the drive" if len(sizes) == 1 else f"each of {len(sizes)} drives"
        if len(sizes) > 1 and not any(map(_share, sizes.values())):
            drives = f"all frames, which are of {len(sizes)} drives with at most {max(sizes.values())} each,"
        return (
            f"{CLASSES_FILE} states no splits: the last fifth of {drives} is "
            f"{VALIDATION!r} ({len(splits[VALIDATION])} frames), the rest {TRAIN!r} ({len(splits[TRAIN])})"
        )
    left = len(ids) - sum(map(len, splits.values()))
    return f"{left} of {len(ids)} frames are in no split of {CLASSES_FILE}" if left else ""


def drive_of(frame_id: str) -> str:
    """Return the drive of a frame: its folder or, without one, its name up to the number of the frame.

    That is the last group of digits that no letter follows: aachen_000005 of aachen_000005_000003_leftImg8bit.
    """
    folder, slash, name = frame_id.rpartition("/")
    if slash:
        return folder
    numbers = list(_NUMBER.finditer(name))
    return name[: numbers[-1].start()] if numbers else name


def _held_out(ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Neighbours in a drive are near copies, so a part of the drive is held out in one piece."""
    drives: dict[str, list[str]] = {}
    for frame in ids:
        drives.setdefault(drive_of(frame), []).append(frame)
    held = {frame for frames in drives.values() for frame in frames[len(frames) - _share(len(frames)) :]}
    if not held and len(ids) > 1:  # single pictures, or drives of two frames
        held = set(ids[len(ids) - max(1, _share(len(ids))) :])
    return {
        TRAIN: tuple(frame for frame in ids if frame not in held),
        VALIDATION: tuple(frame for frame in ids if frame in held),
    }


def _share(count: int) -> int:
    return round(HELD_OUT_SHARE * count)


def _frames_of(split: str, rule: SplitRule, ids: Sequence[str], root: Path) -> tuple[str, ...]:
    if rule.list is not None:
        found = _listed(split, rule.list, ids, root)
    elif rule.pattern is not None:
        patterns = (rule.pattern,) if isinstance(rule.pattern, str) else rule.pattern
        found = {frame for frame in ids if any(fnmatchcase(frame, pattern) for pattern in patterns)}
    else:
        found = _of_drives(split, rule.drives or (), ids)
    if not found:
        raise DatasetError(f"the split {split!r} of {str(root / CLASSES_FILE)!r} has no frame; change its rule")
    return tuple(frame for frame in ids if frame in found)


def _listed(split: str, name: str, ids: Sequence[str], root: Path) -> set[str]:
    path = (root / name).resolve()
    if root.resolve() not in path.parents:
        raise DatasetError(f"split {split!r}: the list {name!r} leads out of {str(root)!r}; put it into that folder")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"split {split!r}: cannot read the list {str(path)!r}: {reason_of(error)}") from None
    listed = {_without_ending(line.strip()) for line in lines if line.strip() and not line.startswith("#")}
    unknown = sorted(listed - set(ids))
    if unknown:
        raise DatasetError(
            f"split {split!r}: {len(unknown)} of {len(listed)} names in {name!r} are no frames, the first "
            f"{unknown[0]!r}; give paths below images/, such as {ids[0] if ids else 'drive/0001'!r}"
        )
    return listed


def _without_ending(name: str) -> str:
    name = name.removeprefix("images/")
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in IMAGE_SUFFIXES else name


def _of_drives(split: str, drives: Sequence[str], ids: Sequence[str]) -> set[str]:
    known = {drive_of(frame) for frame in ids}
    for drive in drives:
        if drive not in known:
            names = ", ".join(closest_first(drive, known)[:10])
            raise DatasetError(
                f"split {split!r}: there is no drive {drive!r}; known: {names}. A drive is a folder "
                "below images/ or, without folders, a name up to its last number"
            )
    return {frame for frame in ids if drive_of(frame) in drives}
