"""What a tune has measured so far, so that a killed one goes on, and the measuring of what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.bench.candidates import Candidate
from anomseg_ros.bench.measure import frames_for, open_runners, surprises
from anomseg_ros.bench.results import Accuracy, write_json
from anomseg_ros.bench.rounds import Progress, Stop, measure_rounds
from anomseg_ros.core.bundle import Bundle, sha256_of
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError


class TuneState:
    """Times by candidate and accuracies by bundle, in one JSON file that is written after each of them.

    settings: everything else on which they depend; a file of other settings is begun anew.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Read the file if it is there. Raises ConfigError where it is not a tune's state."""
        self._path = path
        self._settings: Any = json.loads(json.dumps(to_plain(settings)))
        self._times: dict[str, list[float]] = {}
        self._accuracy: dict[str, Any] = {}
        # Digests of large files: not to be made between two measurements.
        self._keys: dict[Candidate, str] = {}
        if path.is_file():
            self._read()

    def times(self, candidate: Candidate) -> list[float]:
        """Return the milliseconds of the rounds so far; the list is the state's own."""
        if candidate not in self._keys:
            self._keys[candidate] = candidate_key(candidate)
        return self._times.setdefault(self._keys[candidate], [])

    def add_round(self, candidates: Sequence[Candidate], times_ms: Sequence[float]) -> None:
        """Keep one round and write the file."""
        for candidate, time_ms in zip(candidates, times_ms, strict=True):
            self.times(candidate).append(time_ms)
        self.save()

    def accuracy(self, candidate: Candidate) -> Accuracy | None:
        """Return what was measured of the candidate's bundle and backend; None if nothing was yet."""
        kept = self._accuracy.get(accuracy_key(candidate))
        return None if kept is None else from_plain(Accuracy, kept, str(self._path))

    def add_accuracy(self, candidate: Candidate, accuracy: Accuracy) -> None:
        """Keep an accuracy and write the file."""
        self._accuracy[accuracy_key(candidate)] = to_plain(accuracy)
        self.save()

    def save(self) -> None:
        """Write the file."""
        write_json({"settings": self._settings, "times_ms": self._times, "accuracy": self._accuracy}, self._path)

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            settings, times, accuracy = data["settings"], data["times_ms"], data["accuracy"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} is not the state of a tune ({error}); remove it to begin anew") from error
        if settings == self._settings:
            self._times, self._accuracy = times, accuracy


def measure_missing(
    candidates: Sequence[Candidate],
    frames: Sequence[RgbImage],
    rounds: int,
    state: TuneState,
    progress: Progress = lambda what, done, total: None,
) -> tuple[dict[str, str], list[str]]:
    """Run the rounds that the state lacks, interleaved.

    Returns title -> engine in use of what was run, and warnings where that is not the one asked for.
    """
    actual: dict[str, str] = {}
    warnings: list[str] = []
    while missing := [one for one in candidates if len(state.times(one)) < rounds]:
        done = [len(state.times(one)) for one in missing]
        # Those that are equally far take turns; what lags behind catches up first.
        group = [one for one, number in zip(missing, done, strict=True) if number == min(done)]
        until = min([number for number in done if number > min(done)], default=rounds)
        with ExitStack() as stack:
            runners = open_runners(group, stack, progress)
            warnings += surprises(group, runners)
            actual |= {one.title: runner.actual for one, runner in zip(group, runners, strict=True)}
            measure_rounds(
                runners,
                frames_for(group, frames),
                Stop(until - min(done)),
                seed=min(done),
                on_round=partial(state.add_round, group),
                progress=progress,
            )
    return actual, list(dict.fromkeys(warnings))


def label_agreement(source: Bundle, candidate: Candidate, frames: Sequence[RgbImage]) -> Accuracy:
    """Return the share of pixels, at the frames' own size, to which a candidate gives the source bundle's label."""
    reference = open_detector(source)
    options = BackendOptions(provider=candidate.provider)
    detector = open_detector(candidate.bundle, candidate.backend, options)
    try:
        shares = []
        for frame in frames:
            ours, theirs = (one.detect(frame, (), source_size=True).labels for one in (detector, reference))
            shares.append(float(np.mean(ours == theirs)))
    finally:
        detector.close()
        reference.close()
    name = f"{len(frames)} frames, with {source.contract.name}"
    return Accuracy(float(np.mean(shares)), "label_agreement", name, "anomseg tune")


def candidate_key(candidate: Candidate) -> str:
    """Return what a candidate's time depends on, as a digest: not its name or folder, but its weights."""
    plain = asdict(candidate)
    for name in ("name", "bundle", "checkpoint"):
        del plain[name]
    return _digest({**plain, "sha256": sha256_of(candidate.program)})


def accuracy_key(candidate: Candidate) -> str:
    """Return what a candidate's accuracy depends on: weights, size, score and the engine, but not its threads."""
    kept = (sha256_of(candidate.program), candidate.backend, candidate.provider, candidate.score)
    return _digest({"program": kept, "size": (candidate.height_px, candidate.width_px)})


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
