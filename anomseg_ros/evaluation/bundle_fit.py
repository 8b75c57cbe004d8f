"""Compare a bundle with a dataset: the classes for mIoU, and the thresholds whose actual rates are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.labels import LABEL_SETS, class_map, known_classes
from anomseg_ros.core.thresholds import Threshold
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.errors import ConfigError


@dataclass(frozen=True)
class ComparedClasses:
    """Number of classes for mIoU, None where it cannot be measured. label_map: see MeasureSpec; note: why, or how."""

    count: int | None = None
    label_map: tuple[int, ...] | None = None
    note: str = ""


def compared_classes(bundle: Bundle, dataset: Dataset) -> ComparedClasses:
    """Return the classes in which a bundle's labels and a dataset's can be compared."""
    if dataset.classes is None:
        return ComparedClasses()
    known = known_classes(bundle.contract.classes, bundle.contract.void_class)
    ours = {(info.train_id, info.name) for info in known}
    theirs = {(info.train_id, info.name) for info in dataset.classes}
    if ours == theirs:
        return ComparedClasses(len(theirs))
    table = class_map(known, dataset.classes)
    if table is not None:
        note = f"mIoU is over the {len(theirs)} classes of {dataset.name}; the bundle's {len(ours)} are mapped to them"
        return ComparedClasses(len(theirs), table, note)
    lacking = ", ".join(name for _, name in sorted(theirs - ours)[:3]) or "none"
    return ComparedClasses(
        note=f"mIoU is not measured: the bundle's {len(ours)} classes are not the {len(theirs)} of {dataset.name} (it "
        f"lacks {lacking}, …); export with --label-set {_label_set(dataset)} if they are"
    )


def _label_set(dataset: Dataset) -> str:
    return dataset.label_set if dataset.label_set in LABEL_SETS else "CLASSES.YAML"


def calibrated_thresholds(bundle: Bundle, scores: Sequence[str], target_fpr: float) -> dict[str, Threshold]:
    """Return the bundle's calibrated thresholds for a false-positive rate; scores without one are left out."""
    found = {}
    for score in scores:
        try:
            threshold = bundle.threshold(score, target_fpr)
        except ConfigError:  # calibrated, but for higher rates only
            continue
        if threshold is not None:
            found[score] = threshold
    return found
