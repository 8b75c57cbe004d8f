"""Snapshots of an evaluation on disk, from which a killed evaluation resumes.

STATE/<job>/<number>/ holds one Measures: its counts and the list of their frames. A snapshot is written beside and
renamed as a whole, so counts and list always belong together. The newest whole snapshot is used. A job that needs only
its figures replaces its snapshots by them when it is finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomseg_ros.errors import AnomsegError, ConfigError, MetricError, describe_os_error
from anomseg_ros.evaluation.measures import Measures, MeasureSpec
from anomseg_ros.evaluation.results import FORMAT_VERSION, Evaluation, Result, load_evaluation, save_evaluation

_PART = ".part"
_JOB_FILE = "job.json"
_FINISHED_FILE = "results.json"


class JobState:
    """The snapshots of one job: one bundle on one dataset.

    folder: that of all jobs, None to keep nothing. identity: everything (JSON types) on which the counts depend;
    another identity is another job.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], save_every_s: float) -> None:
        text = json.dumps(identity, sort_keys=True)
        self._folder = None if folder is None else folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._identity = text
        self._save_every_s = save_every_s
        self._saved_at = time.monotonic()
        self.notes: tuple[str, ...] = ()
        """Why the state could not be saved."""

    def load(self, spec: MeasureSpec) -> Measures:
        """Return the newest whole snapshot, or empty measures."""
        for snapshot in sorted(self._snapshots(), reverse=True):
            try:
                return Measures.load(spec, snapshot)
            except (MetricError, OSError, ValueError, KeyError, TypeError):
                continue  # damaged: use an older one, or measure again
        return Measures(spec)

    @property
    def due(self) -> bool:
        """Whether there is a folder, and its last snapshot is at least `save_every_s` old."""
        return self._folder is not None and time.monotonic() - self._saved_at >= self._save_every_s

    def save(self, measures: Measures) -> None:
        """Write a snapshot and remove the older ones. A folder that cannot be written is a note: measuring goes on."""
        if self._folder is None:
            return
        old = self._snapshots()
        number = max((int(snapshot.name) for snapshot in old), default=0) + 1
        part = self._folder / f"{number:08d}{_PART}"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            (self._folder / _JOB_FILE).write_text(self._identity + "\n", encoding="utf-8")
            measures.save(part)
            part.rename(self._folder / f"{number:08d}")
        except (OSError, AnomsegError) as error:
            shutil.rmtree(part, ignore_errors=True)
            self._note(error)
        else:
            for snapshot in old:
                shutil.rmtree(snapshot, ignore_errors=True)
        self._saved_at = time.monotonic()

    def finish(self, results: Sequence[Result]) -> None:
        """Write a finished job's results instead of its snapshots, which take thousands of times the space."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_evaluation(Evaluation(FORMAT_VERSION, tuple(results)), self._folder / _FINISHED_FILE)
        except (OSError, AnomsegError) as error:
            self._note(error)
            return
        for snapshot in self._snapshots():
            shutil.rmtree(snapshot, ignore_errors=True)

    def finished(self) -> tuple[Result, ...] | None:
        """Return what `finish` wrote, None where there is nothing that can be read."""
        if self._folder is None or not (self._folder / _FINISHED_FILE).is_file():
            return None
        try:
            return load_evaluation(self._folder / _FINISHED_FILE).results
        except ConfigError:
            return None  # damaged: measure again

    def remove(self) -> None:
        """Delete the job's snapshots."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _note(self, error: Exception) -> None:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        self.notes = (f"the state was not saved, so a killed run would measure again: {reason}",)

    def _snapshots(self) -> list[Path]:
        """Return whole snapshots; their names have one length, so that they sort by number."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if path.name.isdecimal()]
