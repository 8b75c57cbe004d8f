"""The state of a tune, from which a killed one continues, and the measuring of missing rounds."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.bench.candidate_runs import Engine, LeftOut, engine_of, open_each, run_together
from anomseg_ros.bench.candidates import PROGRAM_FILES, Candidate
from anomseg_ros.bench.figures import Accuracy, write_json
from anomseg_ros.bench.measure import frames_for
from anomseg_ros.bench.power import PowerMeter, PowerRequest
from anomseg_ros.bench.rounds import Stop
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, sha256_of
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import ConfigError

STATE_FILE = "state.json"
NO_POWER = PowerRequest(seconds=0)
KIND = "anomseg tune, 2"
"""Kind of the state file, which marks the folder of a tune."""


class TuneState:
    """Rounds, engines and accuracies in one JSON file, and the list of the other files that the tune made beside it.

    settings: other facts that the measurements depend on. Measurements of other settings are discarded.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Read the file if there is one. Raises ConfigError if it or the folder is not that of a tune."""
        self._folder = folder
        self._path = folder / STATE_FILE
        self._settings: Any = json.loads(json.dumps(to_plain(settings)))
        self._rounds: list[dict[str, float]] = []
        self._engines: dict[str, Any] = {}
        self._accuracy: dict[str, Any] = {}
        self._made: list[str] = []
        # Digests of large files take time, which measurements must not include.
        self._keys: dict[Candidate, str] = {}
        if self._path.is_file():
            self._read()
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} exists and is not the folder of a tune: nothing is put there, since it is cleared at the "
                "end; give a new folder as `state`"
            )

    def rounds_of(self, candidates: Sequence[Candidate]) -> list[list[float]]:
        """Return the rounds in which all of these took turns: milliseconds in the order of `candidates`."""
        keys = [self._key(candidate) for candidate in candidates]
        return [[row[key] for key in keys] for row in self._rounds if all(key in row for key in keys)]

    def add_round(self, candidates: Sequence[Candidate], times_ms: Sequence[float]) -> None:
        """Add one round and write the file."""
        self._rounds.append({self._key(one): time_ms for one, time_ms in zip(candidates, times_ms, strict=True)})
        self.save()

    def engine(self, candidate: Candidate) -> Engine | None:
        """Return the engine of a candidate's rounds; None without rounds."""
        plain = self._engines.get(self._key(candidate))
        return None if plain is None else from_plain(Engine, plain, str(self._path))

    def engines(self, candidates: Sequence[Candidate]) -> list[Engine]:
        """Return the engines of candidates that were measured."""
        return [engine for one in candidates if (engine := self.engine(one)) is not None]

    def set_engine(self, candidate: Candidate, engine: Engine) -> None:
        """Set a candidate's engine. Measurements with another engine are discarded."""
        before = self.engine(candidate)
        if before is not None and not before.is_same(engine):
            for row in self._rounds:
                row.pop(self._key(candidate), None)
            self._accuracy.pop(accuracy_key(candidate), None)
        elif before is not None:  # what was measured with the earlier rounds still holds
            engine = replace(engine, stages_ms=engine.stages_ms or before.stages_ms, power=engine.power or before.power)
        self._engines[self._key(candidate)] = to_plain(engine)

    def accuracy(self, candidate: Candidate) -> Accuracy | None:
        """Return the accuracy of the candidate's bundle and backend; None if it was not measured yet."""
        plain = self._accuracy.get(accuracy_key(candidate))
        return None if plain is None else from_plain(Accuracy, plain, str(self._path))

    def add_accuracy(self, candidate: Candidate, accuracy: Accuracy) -> None:
        """Add an accuracy and write the file."""
        self._accuracy[accuracy_key(candidate)] = to_plain(accuracy)
        self.save()

    def claim(self, name: str) -> Path:
        """Return a new path in the folder, and list it among those that remove() deletes."""
        path = self._folder / name
        if name not in self._made:
            if path.exists():
                raise ConfigError(
                    f"{path} exists and was not made by this tune; move it, or give a new folder as `state`"
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
        """Delete the file and all claimed paths, and the folder if it is then empty."""
        root = self._folder.resolve()
        # The file comes last, so that a half-cleared folder is still recognised.
        for path in [root / name for name in (*self._made, f".{STATE_FILE}.part", STATE_FILE)]:
            if root not in path.resolve().parents:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            for folder in path.parents[: len(path.parents) - len(root.parents)]:
                with suppress(OSError):  # not empty
                    folder.rmdir()

    def _key(self, candidate: Candidate) -> str:
        if candidate not in self._keys:
            self._keys[candidate] = candidate_key(candidate)
        return self._keys[candidate]

    def _read(self) -> None:
        try:
            data = parse_json(self._path.read_text(encoding="utf-8"))
            if data["kind"] != KIND:
                raise ValueError(f"it is of {data['kind']!r}, expected {KIND!r}")
            settings, self._made = data["settings"], list(data["made"])
            measured = data["rounds"], data["engines"], data["accuracy"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} is not the state of a tune ({error}); remove it to begin anew, or give a new folder as "
                "`state`"
            ) from error
        if settings == self._settings:
            self._rounds, self._engines, self._accuracy = measured


def measure_together(
    candidates: Sequence[Candidate],
    frames: Sequence[RgbImage],
    rounds: int,
    state: TuneState,
    progress: Progress = no_progress,
    power: PowerRequest = NO_POWER,
) -> tuple[list[Candidate], list[LeftOut]]:
    """Run the rounds that the state lacks. Return the candidates that can run, and the others with the reason.

    All candidates take turns in a round. With a new candidate, all of them run again.

    Args:
        candidates: what to measure.
        frames: uint8 (H, W, 3) RGB to time on.
        rounds: number of rounds in the end.
        state: holds the rounds.
        progress: called while candidates are loaded and measured.
        power: how to measure power, where the state lacks it.
    """
    candidates, duplicates = _without_duplicates(candidates)
    if len(state.rounds_of(candidates)) >= rounds and not _lacks_power(candidates, state, power):
        return candidates, duplicates
    with ExitStack() as stack:
        runners, failed = open_each(candidates, frames_for(candidates, frames), stack, progress)
        usable = list(runners)
        for candidate, runner in runners.items():
            state.set_engine(candidate, engine_of(runner))
        missing = rounds - len(state.rounds_of(usable))
        if usable and (missing > 0 or _lacks_power(usable, state, power)):
            _, engines = run_together(
                runners,
                frames_for(usable, frames),
                Stop(missing) if missing > 0 else None,
                stack.enter_context(PowerMeter(power)),
                seed=rounds - missing,
                on_round=partial(state.add_round, usable),
                progress=progress,
            )
            for candidate, engine in zip(usable, engines, strict=True):
                state.set_engine(candidate, engine)
            state.save()
    return usable, duplicates + failed


def _lacks_power(candidates: Sequence[Candidate], state: TuneState, power: PowerRequest) -> bool:
    return power.seconds > 0 and any(engine.power is None for engine in state.engines(candidates))


def _without_duplicates(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    """Return the candidates, and those that differ from an earlier one in their names only."""
    firsts: dict[str, Candidate] = {}
    duplicates = []
    for candidate in candidates:
        first = firsts.setdefault(candidate_key(candidate), candidate)
        if first is not candidate:
            duplicates.append(LeftOut(candidate.title, f"it is the same as {first.title}"))
    return list(firsts.values()), duplicates


def label_agreement(source: Bundle, candidate: Candidate, frames: Sequence[RgbImage]) -> Accuracy:
    """Return the share of pixels, at the size of the frames, with the same label from candidate and source bundle."""
    reference = open_detector(source, default_backend(source))
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


def default_backend(bundle: Bundle) -> str:
    """Return ONNX Runtime for a bundle with a graph, else the backend of its other program."""
    files = bundle.contract.files
    others = (backend for backend, file in PROGRAM_FILES.items() if file in files)
    return "onnxruntime" if GRAPH_FILE in files else next(others, "onnxruntime")


def candidate_key(candidate: Candidate) -> str:
    """Return a digest of the facts that a candidate's time depends on: its weights, not its name or folder."""
    plain = asdict(candidate)
    for name in ("name", "bundle", "checkpoint", "runner"):
        del plain[name]
    return _digest({**plain, "sha256": sha256_of(candidate.program)})


def accuracy_key(candidate: Candidate) -> str:
    """Return a digest of the facts that a candidate's accuracy depends on, to which threads do not belong."""
    program = (sha256_of(candidate.program), candidate.backend, candidate.provider, candidate.score)
    return _digest({"program": program, "size": (candidate.height_px, candidate.width_px)})


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
