"""What changed between two evaluations: result by result, figure by figure, frame by frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomseg_ros.core.output_files import write_results
from anomseg_ros.core.schema import to_plain
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.results import Evaluation, FrameResult, Result, Robustness
from anomseg_ros.evaluation.robustness import FIGURES, NAMES

Key = tuple[str, str, str, str]
ROUNDING = 1e-12  # 0.80 - 0.75 is a little more than 0.05 in binary


@dataclass(frozen=True)
class Change:
    """One figure before and after; None where not measured. delta is after - before, None unless both were measured.

    Fractions, or milliseconds where `unit` says ms. better: whether after is the better one, None where it is neither.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    delta: float | None
    better: bool | None


@dataclass(frozen=True)
class FrameChange:
    """One frame that both evaluations have."""

    frame_id: str
    auprc: Change
    fpr95: Change

    @property
    def changed(self) -> bool:
        """Whether a figure differs in any digit."""
        return any(change.before != change.after for change in (self.auprc, self.fpr95))


@dataclass(frozen=True)
class ResultChange:
    """Two results that were paired: their keys, what makes the pair doubtful, their figures and frames.

    frames: largest change of AuPRC or FPR95 first. only_before, only_after: frames that the other lacks.
    """

    key_before: Key
    key_after: Key
    notes: tuple[str, ...]
    figures: tuple[Change, ...]
    frames: tuple[FrameChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def auprc(self) -> Change:
        """The change of the AuPRC."""
        return self.figures[0]


@dataclass(frozen=True)
class Comparison:
    """Every pair, and the keys of results without a partner."""

    pairs: tuple[ResultChange, ...]
    only_before: tuple[Key, ...]
    only_after: tuple[Key, ...]


# name, unit, value, whether higher is better. AuPRC stays first: ResultChange.auprc reads it there.
_FIGURES: tuple[tuple[str, str, Callable[[Result], float | None], bool], ...] = (
    ("AuPRC", "fraction", lambda result: result.auprc, True),
    ("FPR95", "fraction", lambda result: result.fpr95, False),
    ("AUROC", "fraction", lambda result: result.auroc, True),
    ("best F1", "fraction", lambda result: result.best_f1, True),
    ("mIoU", "fraction", lambda result: result.miou, True),
    ("ECE", "fraction", lambda result: result.ece, False),
    (
        "FPR at threshold",
        "fraction",
        lambda result: None if result.at_threshold is None else result.at_threshold.fpr,
        False,
    ),
    ("component sIoU", "fraction", lambda result: None if result.components is None else result.components.siou, True),
    ("component PPV", "fraction", lambda result: None if result.components is None else result.components.ppv, True),
    ("component F1", "fraction", lambda result: None if result.components is None else result.components.f1, True),
    ("time p50", "ms", lambda result: (result.inference_ms or {}).get("p50"), False),
    ("network time p50", "ms", lambda result: (result.network_ms or {}).get("p50"), False),
)


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Pair the results of two evaluations and say what changed in each pair.

    Results pair by their key. Where no key is in both, two evaluations of one result each pair those, and two of one
    bundle each pair by dataset, score and protocol. Raises ConfigError if nothing pairs or a key is twice in one.
    """
    _refuse_repeated_keys(before, "first")
    _refuse_repeated_keys(after, "second")
    pairs = _pairs(before.results, after.results)
    if not pairs:
        raise ConfigError(
            f"the evaluations have no result in common: the first has {_listed(before)}, the second {_listed(after)}; "
            "compare evaluations of the same bundle, or of the same datasets, scores and protocol with one bundle each"
        )
    paired_before, paired_after = {pair[0].key for pair in pairs}, {pair[1].key for pair in pairs}
    return Comparison(
        pairs=tuple(_with_means(_result_change(*pair), before.robustness, after.robustness) for pair in pairs),
        only_before=tuple(result.key for result in before.results if result.key not in paired_before),
        only_after=tuple(result.key for result in after.results if result.key not in paired_after),
    )


def auprc_failures(comparison: Comparison, most_drop: float) -> list[str]:
    """Return a line per result whose AuPRC fell by more than `most_drop`, a fraction, or was not measured again."""
    lines = []
    for pair in comparison.pairs:
        change = pair.auprc
        if change.before is not None and change.after is None:
            lines.append(f"{named(pair.key_after)}: AuPRC is no longer measured")
        elif change.delta is not None and -change.delta > most_drop + ROUNDING:
            lines.append(f"{named(pair.key_after)}: AuPRC fell by {-change.delta:.6f}, more than {most_drop:g}")
    return lines + [f"{named(key)}: is missing from the second evaluation" for key in comparison.only_before]


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Write the comparison as JSON, see write_results."""
    write_results(path, json.dumps(to_plain(comparison, keep_none=True), indent=1, allow_nan=False) + "\n")


def named(key: Key) -> str:
    """Return a key as `bundle, score on dataset (protocol)`."""
    bundle, dataset, score, protocol = key
    return f"{bundle}, {score} on {dataset} ({protocol})"


def _pairs(before: Sequence[Result], after: Sequence[Result]) -> list[tuple[Result, Result]]:
    by_key = {result.key: result for result in after}
    same = [(result, by_key[result.key]) for result in before if result.key in by_key]
    if same:
        return same
    if len(before) == len(after) == 1:
        return [(before[0], after[0])]
    if len({result.bundle for result in before}) == len({result.bundle for result in after}) == 1:
        by_rest = {result.key[1:]: result for result in after}
        return [(result, by_rest[result.key[1:]]) for result in before if result.key[1:] in by_rest]
    return []


def _result_change(before: Result, after: Result) -> ResultChange:
    old, new = ({frame.frame_id: frame for frame in result.per_frame} for result in (before, after))
    frames = [_frame_change(frame, new[name]) for name, frame in old.items() if name in new]
    return ResultChange(
        key_before=before.key,
        key_after=after.key,
        notes=tuple(_notes(before, after)),
        figures=tuple(_change(name, unit, of(before), of(after), higher) for name, unit, of, higher in _FIGURES),
        frames=tuple(sorted(frames, key=_size, reverse=True)),
        only_before=tuple(name for name in old if name not in new),
        only_after=tuple(name for name in new if name not in old),
    )


def _with_means(change: ResultChange, before: Sequence[Robustness], after: Sequence[Robustness]) -> ResultChange:
    """Add the means over corruptions where both results have been measured under the same ones."""
    old = next((one for one in before if one.key == change.key_before), None)
    new = next((one for one in after if one.key == change.key_after), None)
    if old is None or new is None:
        return change
    under = [{(cell.kind, cell.severity) for cell in one.corruptions} for one in (old, new)]
    if under[0] != under[1]:
        note = "measured under different corruptions: their means are not compared"
        return replace(change, notes=(*change.notes, note))
    means = (
        _change(f"{NAMES[name]}, corrupted", "fraction", getattr(old.mean, name), getattr(new.mean, name), higher)
        for name, higher in FIGURES.items()
    )
    return replace(change, figures=(*change.figures, *means))


def _frame_change(before: FrameResult, after: FrameResult) -> FrameChange:
    return FrameChange(
        before.frame_id,
        _change("AuPRC", "fraction", before.auprc, after.auprc, True),
        _change("FPR95", "fraction", before.fpr95, after.fpr95, False),
    )


def _change(name: str, unit: str, before: float | None, after: float | None, higher: bool) -> Change:
    delta = None if before is None or after is None else after - before
    return Change(name, unit, before, after, delta, None if not delta else (delta > 0) == higher)


def _size(frame: FrameChange) -> float:
    """Return how much a frame changed; one that is measured in only one evaluation counts most."""
    if (frame.auprc.before is None) != (frame.auprc.after is None):
        return float("inf")
    return max(abs(change.delta or 0.0) for change in (frame.auprc, frame.fpr95))


def _notes(before: Result, after: Result) -> list[str]:
    """Return what makes two results hard to compare."""
    notes = []
    for name in ("bundle", "dataset", "score", "protocol", "network", "precision", "backend"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            doubt = ": the figures do not mean the same" if name in ("dataset", "protocol") else ""
            notes.append(f"{name} {old!r} against {new!r}{doubt}")
    digests = {before.bundle_sha256, after.bundle_sha256}
    if before.bundle == after.bundle and None not in digests and len(digests) > 1:
        notes.append("the bundle's digest differs: it is not the same model")
    if (before.known_px, before.anomaly_px) != (after.known_px, after.anomaly_px):
        notes.append(
            f"known and anomalous pixels {before.known_px} and {before.anomaly_px} "
            f"against {after.known_px} and {after.anomaly_px}"
        )
    return notes


def _refuse_repeated_keys(evaluation: Evaluation, which: str) -> None:
    keys = [result.key for result in evaluation.results]
    repeated = next((key for key in keys if keys.count(key) > 1), None)
    if repeated is not None:
        raise ConfigError(f"the {which} evaluation has {named(repeated)} {keys.count(repeated)} times; expected once")


def _listed(evaluation: Evaluation) -> str:
    return "; ".join(named(result.key) for result in evaluation.results) or "none"
