"""Read every frame of a dataset once and say what is wrong with it, before any long work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from anomseg_ros.datasets.base import ANOMALY, KNOWN, VOID, Dataset
from anomseg_ros.datasets.problems import REMEDIES, FrameProblem
from anomseg_ros.errors import DatasetError

NAMED = 5
"""How many files of a kind a report names."""


@dataclass(frozen=True)
class FrameFinding:
    """What reading one frame showed. problem: why it cannot be used, or None. Pixel counts are of the ground truth."""

    id: str
    problem: FrameProblem | None = None
    anomaly_px: int = 0
    known_px: int = 0
    void_px: int = 0


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    frames: frames with an image and labels; readable: those without a problem; published: how many the dataset has,
    None where nothing is published. anomaly_frames: readable frames with an anomaly pixel, None where the dataset has
    no anomaly masks. warnings: what is usable but may surprise.
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

    @property
    def complete(self) -> bool:
        """Whether there are as many frames as published; True where nothing is published."""
        return self.published is None or self.frames == self.published

    def ok(self, allow_partial: bool = False) -> bool:
        """Whether the dataset can be used: nothing wrong, and complete unless a part is allowed."""
        return not self.problems and self.frames > 0 and (self.complete or allow_partial)

    def require(self, allow_partial: bool = False) -> None:
        """Raise DatasetError with everything that is wrong, on one line, unless ok()."""
        if not self.ok(allow_partial):
            raise DatasetError(f"{self.title}: {'; '.join(self.errors(allow_partial))}")

    @property
    def title(self) -> str:
        """Name, split and path in one phrase."""
        return f"{self.name}{f' {self.split}' if self.split else ''} in {self.path!r}"

    def errors(self, allow_partial: bool = False) -> list[str]:
        """Return one sentence per kind of problem: how many, the first few files, what to do."""
        found = [_of_kind(kind, self.problems) for kind in REMEDIES if any(p.kind == kind for p in self.problems)]
        if self.frames == 0 or not (self.complete or allow_partial):
            found.insert(0, f"{self.frames} frames found, {self.published} published: {_incomplete(self)}")
        return found

    def lines(self, allow_partial: bool = False) -> list[str]:
        """Return the report as lines of text: a summary, errors, warnings."""
        published = "" if self.published is None else f" of {self.published} published"
        anomalies = "" if self.anomaly_frames is None else f", {self.anomaly_frames} with anomalies"
        verdict = "ok" if self.ok(allow_partial) else "NOT USABLE"
        summary = (
            f"{self.title}, {self.layout} layout: {self.frames} frames{published}, {self.readable} readable{anomalies}"
        )
        noted = [f"  error: {text}" for text in self.errors(allow_partial)]
        return [f"{summary}: {verdict}", *noted, *(f"  warning: {text}" for text in self.warnings)]


def check(dataset: Dataset, threads: int = 2, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every frame and return what was found; never raises for what is wrong with the files.

    threads: frames read at a time (decoding releases the interpreter lock). progress: called with (done, total) in the
    calling thread after each frame.
    """
    findings: list[FrameFinding] = []
    for finding in _findings(dataset, threads):
        findings.append(finding)
        if progress is not None:
            progress(len(findings), len(dataset))
    return summarise(dataset, findings)


def check_frame(dataset: Dataset, index: int) -> FrameFinding:
    """Read one frame; independent of all others, so that a check can be spread over threads or processes."""
    try:
        frame = dataset.load(index)
    except FrameProblem as problem:
        return FrameFinding(dataset.frame_id(index), problem)
    truth = frame.anomaly if frame.anomaly is not None else frame.labels
    if truth is None:
        return FrameFinding(frame.id)
    void = int(np.count_nonzero(truth == VOID))
    anomaly = 0 if frame.anomaly is None else int(np.count_nonzero(frame.anomaly == ANOMALY))
    return FrameFinding(frame.id, None, anomaly, truth.size - void - anomaly, void)


def summarise(dataset: Dataset, findings: Sequence[FrameFinding]) -> CheckReport:
    """Turn the findings of all frames into a report."""
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
        warnings=tuple(_warnings(readable, dataset.has_anomalies)),
    )


def _findings(dataset: Dataset, threads: int) -> Iterator[FrameFinding]:
    if threads <= 1:
        yield from (check_frame(dataset, index) for index in range(len(dataset)))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="dataset-check")
    try:
        yield from pool.map(partial(check_frame, dataset), range(len(dataset)))
    finally:
        pool.shutdown(cancel_futures=True)


def _warnings(readable: Sequence[FrameFinding], has_anomalies: bool) -> Iterator[str]:
    blank = [finding.id for finding in readable if finding.known_px + finding.anomaly_px == 0]
    if blank:
        yield f"{len(blank)} of {len(readable)} frames hold only void pixels and count for nothing: {_first(blank)}"
    if not has_anomalies:
        return
    without = [finding.id for finding in readable if finding.anomaly_px == 0]
    if readable and len(without) == len(readable):
        yield (
            f"no frame holds an anomaly pixel (value {ANOMALY}), all else is known (value {KNOWN}) or void: AuPRC and "
            "FPR95 cannot be measured. Labels of a hidden test set are published like this"
        )
    elif without:
        yield (
            f"{len(without)} of {len(readable)} frames hold no anomaly: {_first(without)}; the protocol `seeds` leaves "
            "them out, others count their pixels as known"
        )


def _incomplete(report: CheckReport) -> str:
    if report.frames == 0:
        return "no image has labels"
    if report.published is not None and report.frames > report.published:
        return "are frames of another split, or generated ones, among them?"
    return "unpack the archives again, or allow a part of the dataset; its figures do not compare with published ones"


def _of_kind(kind: str, problems: Sequence[FrameProblem]) -> str:
    matching = [problem for problem in problems if problem.kind == kind]
    files = [f"{problem.file}{f' ({problem.detail})' if problem.detail else ''}" for problem in matching]
    return f"{len(matching)} × {kind}: {_first(files)}; {REMEDIES[kind]}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f", … ({len(names) - NAMED} more)" if len(names) > NAMED else "")
