"""Check a dataset before long work starts: read every frame once and report what is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from anomseg_ros.core.labels import LABEL_SETS, ClassInfo
from anomseg_ros.core.problems import REMEDIES, FrameProblem
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, Dataset, notes_of
from anomseg_ros.errors import DatasetError

MAX_FILES_LISTED = 5
"""A report lists at most this many files per kind of problem; it counts the others."""


@dataclass(frozen=True)
class FrameFinding:
    """Result of reading one frame. problem: why it cannot be used, or None.

    Pixel counts are of the ground truth. labels: the values in its semantic labels.
    """

    id: str
    problem: FrameProblem | None = None
    anomaly_px: int = 0
    known_px: int = 0
    void_px: int = 0
    labels: frozenset[int] = frozenset()


@dataclass(frozen=True)
class CheckReport:
    """Result of checking a dataset.

    frames: frames with an image and labels; readable: frames without a problem; published: number of frames in the
    published dataset, None if unknown. anomaly_frames: readable frames with an anomaly pixel, None if the dataset has
    no anomaly masks. warnings: properties that do not prevent use but may surprise. notes: how the frames were chosen.
    """

    name: str
    path: str
    split: str
    layout: str
    frames: int
    readable: int
    published: int | None
    anomaly_frames: int | None
    problems: tuple[FrameProblem, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether there are as many frames as published; True if that number is unknown."""
        return self.published is None or self.frames == self.published

    def ok(self, allow_partial: bool = False) -> bool:
        """Return whether the dataset can be used: no problems, and complete unless allow_partial."""
        return not self.problems and self.frames > 0 and (self.complete or allow_partial)

    def require(self, allow_partial: bool = False) -> None:
        """Raise DatasetError with all errors on one line, unless ok()."""
        if not self.ok(allow_partial):
            raise DatasetError(f"{self.title}: {'; '.join(self.errors(allow_partial))}")

    @property
    def title(self) -> str:
        """Name, split and path in one phrase."""
        return f"{self.name}{f' {self.split}' if self.split else ''} in {self.path!r}"

    def errors(self, allow_partial: bool = False) -> list[str]:
        """Return one sentence per kind of problem: number of files, the first few of them, remedy."""
        kinds = [kind for kind in REMEDIES if any(problem.kind == kind for problem in self.problems)]
        errors = [_error_text(kind, self.problems) for kind in kinds]
        if self.frames == 0 or not (self.complete or allow_partial):
            errors.insert(0, f"{self.frames} frames found, {self.published} published: {_count_hint(self)}")
        return errors

    def lines(self, allow_partial: bool = False) -> list[str]:
        """Return the report as lines of text: summary, errors, warnings."""
        published = "" if self.published is None else f" of {self.published} published"
        anomalies = "" if self.anomaly_frames is None else f", {self.anomaly_frames} with anomalies"
        verdict = "ok" if self.ok(allow_partial) else "NOT USABLE"
        summary = (
            f"{self.title}, {self.layout} layout: {self.frames} frames{published}, {self.readable} readable{anomalies}"
        )
        errors = [f"  error: {text}" for text in self.errors(allow_partial)]
        notes = [f"  {text}" for text in self.notes]
        return [f"{summary}: {verdict}", *notes, *errors, *(f"  warning: {text}" for text in self.warnings)]


def check(dataset: Dataset, threads: int = 2, progress: Progress = no_progress) -> CheckReport:
    """Read every frame and report the problems; a problem with a file is reported, not raised.

    threads: frames read at a time (decoding releases the interpreter lock). progress is called in the calling thread
    after each frame.
    """
    findings: list[FrameFinding] = []
    for finding in _findings(dataset, threads):
        findings.append(finding)
        progress(f"checking {dataset.name}", len(findings), len(dataset))
    return summarise(dataset, findings)


def check_frame(dataset: Dataset, index: int) -> FrameFinding:
    """Read one frame. Calls are independent, so a check can run in several threads or processes."""
    try:
        frame = dataset.load(index)
    except FrameProblem as problem:
        return FrameFinding(dataset.frame_id(index), problem)
    truth = frame.anomaly if frame.anomaly is not None else frame.labels
    if truth is None:
        return FrameFinding(frame.id)
    labels = () if frame.labels is None else np.flatnonzero(np.bincount(frame.labels.reshape(-1), minlength=256))
    void = int(np.count_nonzero(truth == VOID))
    anomaly = 0 if frame.anomaly is None else int(np.count_nonzero(frame.anomaly == ANOMALY))
    return FrameFinding(frame.id, None, anomaly, truth.size - void - anomaly, void, frozenset(map(int, labels)))


def summarise(dataset: Dataset, findings: Sequence[FrameFinding]) -> CheckReport:
    """Return the report on the findings of all frames."""
    readable = [finding for finding in findings if finding.problem is None]
    problems = (*dataset.problems, *(finding.problem for finding in findings if finding.problem is not None))
    return CheckReport(
        name=dataset.name,
        path=dataset.path,
        split=dataset.split,
        layout=dataset.layout,
        frames=len(dataset),
        readable=len(readable),
        published=dataset.published_count,
        anomaly_frames=sum(finding.anomaly_px > 0 for finding in readable) if dataset.has_anomalies else None,
        problems=problems,
        warnings=(*_class_warnings(dataset, readable), *_warnings(readable, dataset.has_anomalies)),
        notes=notes_of(dataset),
    )


def few_classes(dataset: Dataset, classes: Sequence[ClassInfo], shown: Collection[int]) -> str:
    """Return what to say of classes that no frame shows, empty where every frame's class is shown or few are absent.

    Args:
        dataset: the frames.
        classes: its classes.
        shown: label values that its frames have.
    """
    absent = [info.name for info in classes if info.train_id not in shown]
    count = f"only {len(classes) - len(absent)} of the {len(classes)} classes of {dataset.label_set} occur"
    if dataset.label_set not in LABEL_SETS and dataset.published_count is None and absent:
        return f"{count}: no frame shows {_listed(absent)}; label frames with them, or remove them from the classes"
    if 2 * len(absent) > len(classes):
        return (
            f"{count}: are these frames of {dataset.name}? For classes of your own, use the dataset `folder` "
            "(docs/own_classes.md)"
        )
    return ""


def _findings(dataset: Dataset, threads: int) -> Iterator[FrameFinding]:
    if threads <= 1:
        yield from (check_frame(dataset, index) for index in range(len(dataset)))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="dataset-check")
    try:
        yield from pool.map(partial(check_frame, dataset), range(len(dataset)))
    finally:
        pool.shutdown(cancel_futures=True)


def _class_warnings(dataset: Dataset, readable: Sequence[FrameFinding]) -> Iterator[str]:
    if dataset.classes is None or not readable:
        return
    text = few_classes(dataset, dataset.classes, frozenset().union(*(finding.labels for finding in readable)))
    if text:
        yield text


def _warnings(readable: Sequence[FrameFinding], has_anomalies: bool) -> Iterator[str]:
    blank = [finding.id for finding in readable if finding.known_px + finding.anomaly_px == 0]
    if blank:
        yield f"{len(blank)} of {len(readable)} frames hold only void pixels and are not counted: {_listed(blank)}"
    if not has_anomalies:
        return
    without = [finding.id for finding in readable if finding.anomaly_px == 0]
    if readable and len(without) == len(readable):
        yield (
            f"no frame holds an anomaly pixel (value {ANOMALY}), all pixels are known (value {KNOWN}) or void: AuPRC "
            "and FPR95 cannot be measured. The labels of hidden test sets are published in this form"
        )
    elif without:
        yield (
            f"{len(without)} of {len(readable)} frames hold no anomaly: {_listed(without)}; the protocol `seeds` "
            "leaves them out, the other protocols count their pixels as known"
        )


def _count_hint(report: CheckReport) -> str:
    if report.frames == 0:
        return "no image has labels"
    if report.published is not None and report.frames > report.published:
        return "look for frames of another split or generated frames among them"
    return "unpack the archives again, or allow a partial dataset, whose figures are not comparable with published ones"


def _error_text(kind: str, problems: Sequence[FrameProblem]) -> str:
    matching = [problem for problem in problems if problem.kind == kind]
    files = [f"{problem.file}{f' ({problem.detail})' if problem.detail else ''}" for problem in matching]
    return f"{len(matching)} × {kind}: {_listed(files)}; {REMEDIES[kind]}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_FILES_LISTED
    return ", ".join(names[:MAX_FILES_LISTED]) + (f", … ({more} more)" if more > 0 else "")
