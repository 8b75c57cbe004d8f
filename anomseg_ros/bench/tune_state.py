"""What a tune has measured and made so far, so that a killed one goes on, and the measuring of what is missing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.bench.candidates import PROGRAM_FILES, Candidate, Runner, open_runner
from anomseg_ros.bench.measure import frames_for
from anomseg_ros.bench.results import Accuracy, write_json
from anomseg_ros.bench.rounds import Progress, Stop, measure_rounds
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, sha256_of
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import AnomsegError, ConfigError

STATE_FILE = "state.json"
KIND = "anomseg tune, 2"
"""Written into the file: by it a folder is known as a tune's own."""


@dataclass(frozen=True)
class Engine:
    """The engine that a candidate was to run on, and the one that it did run on."""

    requested: str
    actual: str


@dataclass(frozen=True)
class LeftOut:
    """What is no candidate, and why."""

    what: str
    reason: str


class TuneState:
    """Rounds, engines and accuracies in one JSON file of a folder, and what else of that folder is tune's own.

    settings: everything else that the measurements depend on; those of other settings are begun anew.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Read the file if it is there. Raises ConfigError where it, or the folder, is not a tune's."""
        self._folder = folder
        self._path = folder / STATE_FILE
        self._settings: Any = json.loads(json.dumps(to_plain(settings)))
        self._rounds: list[dict[str, float]] = []
        self._engines: dict[str, Any] = {}
        self._accuracy: dict[str, Any] = {}
        self._made: list[str] = []
        # Digests of large files: not to be made between two measurements.
        self._keys: dict[Candidate, str] = {}
        if self._path.is_file():
            self._read()
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} exists and is not the folder of a tune: nothing is put there, since it is cleared at the "
                "end; give a new folder as --state"
            )

    def rounds_of(self, candidates: Sequence[Candidate]) -> list[list[float]]:
        """Return the rounds in which all of these took turns: milliseconds of each, in the order of `candidates`."""
        keys = [self._key(candidate) for candidate in candidates]
        return [[row[key] for key in keys] for row in self._rounds if all(key in row for key in keys)]

    def add_round(self, candidates: Sequence[Candidate], times_ms: Sequence[float]) -> None:
        """Keep one round and write the file."""
        self._rounds.append({self._key(one): time_ms for one, time_ms in zip(candidates, times_ms, strict=True)})
        self.save()

    def engine(self, candidate: Candidate) -> Engine | None:
        """Return what the kept rounds of a candidate ran on; None without any."""
        kept = self._engines.get(self._key(candidate))
        return None if kept is None else from_plain(Engine, kept, str(self._path))

    def engines(self, candidates: Sequence[Candidate]) -> list[Engine]:
        """Return the engines of candidates that were measured."""
        return [engine for one in candidates if (engine := self.engine(one)) is not None]

    def set_engine(self, candidate: Candidate, engine: Engine) -> None:
        """Keep what a candidate runs on now; what was measured of it on another engine is dropped."""
        before = self.engine(candidate)
        if before is not None and before.actual != engine.actual:
            for row in self._rounds:
                row.pop(self._key(candidate), None)
            self._accuracy.pop(accuracy_key(candidate), None)
        self._engines[self._key(candidate)] = to_plain(engine)

    def accuracy(self, candidate: Candidate) -> Accuracy | None:
        """Return what was measured of the candidate's bundle and backend; None if nothing was yet."""
        kept = self._accuracy.get(accuracy_key(candidate))
        return None if kept is None else from_plain(Accuracy, kept, str(self._path))

    def add_accuracy(self, candidate: Candidate, accuracy: Accuracy) -> None:
        """Keep an accuracy and write the file."""
        self._accuracy[accuracy_key(candidate)] = to_plain(accuracy)
        self.save()

    def claim(self, name: str) -> Path:
        """Return a path in the folder that is about to be made, and note that remove() may delete it."""
        path = self._folder / name
        if name not in self._made:
            if path.exists():
                raise ConfigError(
                    f"{path} exists and was not made by this tune; move it, or give a new folder as --state"
                )
            self._made.append(name)
            self.save()
        return path

    def save(self) -> None:
        """Write the file."""
        plain = {
            "kind": KIND,
            "settings": self._settings,
            "rounds": self._rounds,
            "engines": self._engines,
            "accuracy": self._accuracy,
            "made": self._made,
        }
        write_json(plain, self._path)

    def remove(self) -> None:
        """Delete the file and what was claimed, and the folder where nothing else is in it."""
        root = self._folder.resolve()
        # The file last: a folder that is half cleared is still known as a tune's.
        for path in [root / name for name in (*self._made, f".{STATE_FILE}.part", STATE_FILE)]:
            if root not in path.resolve().parents:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            for folder in path.parents[: len(path.parents) - len(root.parents)]:
                with suppress(OSError):  # something else is in it
                    folder.rmdir()

    def _key(self, candidate: Candidate) -> str:
        if candidate not in self._keys:
            self._keys[candidate] = candidate_key(candidate)
        return self._keys[candidate]

    def _read(self) -> None:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            if data["kind"] != KIND:
                raise ValueError(f"it is of {data['kind']!r}, expected {KIND!r}")
            settings, self._made = data["settings"], list(data["made"])
            measured = data["rounds"], data["engines"], data["accuracy"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} is not the state of a tune ({error}); remove it to begin anew, or give a new folder as "
                "--state"
            ) from error
        if settings == self._settings:
            self._rounds, self._engines, self._accuracy = measured


def measure_together(
    candidates: Sequence[Candidate],
    frames: Sequence[RgbImage],
    rounds: int,
    state: TuneState,
    progress: Progress = lambda what, done, total: None,
) -> tuple[list[Candidate], list[LeftOut]]:
    """Run what the state lacks of `rounds` rounds in which all candidates take turns.

    Rounds that one of them missed are no comparison: with a new candidate, all of them run again. Returns the
    candidates that can run, and those that cannot with the reason.
    """
    candidates, twice = _once_each(candidates)
    if len(state.rounds_of(candidates)) >= rounds:
        return candidates, twice
    with ExitStack() as stack:
        runners, failed = _open_each(candidates, frames, stack, progress)
        usable = list(runners)
        for candidate, runner in runners.items():
            state.set_engine(candidate, Engine(runner.requested, runner.actual))
        done = len(state.rounds_of(usable))
        if usable and done < rounds:
            measure_rounds(
                list(runners.values()),
                frames_for(usable, frames),
                Stop(rounds - done),
                seed=done,
                on_round=partial(state.add_round, usable),
                progress=progress,
            )
    return usable, twice + failed


def _once_each(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    """Return those that differ in more than their names, which is all that a time depends on, and the others."""
    first: dict[str, Candidate] = {}
    twice = []
    for candidate in candidates:
        known = first.setdefault(candidate_key(candidate), candidate)
        if known is not candidate:
            twice.append(LeftOut(candidate.title, f"it is the same as {known.title}"))
    return list(first.values()), twice


def _open_each(
    candidates: Sequence[Candidate], frames: Sequence[RgbImage], stack: ExitStack, progress: Progress
) -> tuple[dict[Candidate, Runner], list[LeftOut]]:
    """Load each candidate and run one frame: some engines find only then that they cannot. The stack closes them."""
    runners: dict[Candidate, Runner] = {}
    failed = []
    for index, (candidate, own) in enumerate(zip(candidates, frames_for(candidates, frames), strict=True)):
        try:
            runner = open_runner(candidate)
            stack.callback(runner.close)
            runner(own[0])
            runners[candidate] = runner
        except AnomsegError as error:
            failed.append(LeftOut(candidate.title, str(error)))
        progress("loading", index + 1, len(candidates))
    return runners, failed


def label_agreement(source: Bundle, candidate: Candidate, frames: Sequence[RgbImage]) -> Accuracy:
    """Return the share of pixels, at the frames' own size, to which a candidate gives the source bundle's label."""
    reference = open_detector(source, own_backend(source))
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


def own_backend(bundle: Bundle) -> str:
    """Return the backend to run a bundle on where none is asked for: ONNX Runtime, or what runs its other program."""
    files = bundle.contract.files
    others = (backend for backend, file in PROGRAM_FILES.items() if file in files)
    return "onnxruntime" if GRAPH_FILE in files else next(others, "onnxruntime")


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
