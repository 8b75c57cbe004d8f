"""What is done so far, in a folder beside the output: the same command continues there after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomseg_ros.adaptation.judge import Figures
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.staging import replace_text
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import ConfigError, OutputError, describe_os_error

REQUEST_FILE, STAGE_FILE = "request.json", "stage.json"
GIVEN = "given"


@dataclass(frozen=True)
class Stage:
    """What was measured of a stage's bundle on the frames held back.

    name: "given", "bn", "self-1", … bundle: its folder. drive_threshold: for target_fpr, from frames that the stage has
    not learned from. held_back_fpr: the rate above it on those held back. agreement: share of the pixels that the given
    bundle is confident of, whose class is the same. miou: on labels held back, None without any. kept: whether later
    stages and the result build on it. facts: about its making.
    """

    name: str
    bundle: str
    drive_threshold: float
    held_back_fpr: float
    figures: Figures
    agreement: float = 1.0
    miou: float | None = None
    kept: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


class WorkFolder:
    """The stages that are done."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], overwrite: bool) -> None:
        """Open the folder of a request. facts: what decides the result.

        Raises ConfigError if it holds the work of another request, unless overwrite; OutputError if it cannot be
        written.
        """
        self.folder = folder
        text = json.dumps(facts, indent=2, sort_keys=True)
        try:
            if not self._is_of(text):
                if folder.exists() and not overwrite:
                    raise ConfigError(
                        f"{folder} holds the work of another call; pass --overwrite to start afresh, or choose another "
                        "output"
                    )
                if folder.exists():
                    shutil.rmtree(folder)
                folder.mkdir(parents=True)
                replace_text(folder / REQUEST_FILE, text)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {describe_os_error(error, folder)}") from error

    def place(self, name: str) -> Path:
        """Return the folder of a stage, which exists then."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        return place

    def done(self, name: str) -> Stage | None:
        """Return a stage that is done, None for others."""
        path = self.folder / name / STAGE_FILE
        if not path.is_file():
            return None
        try:
            return from_plain(Stage, parse_json(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError, ConfigError) as error:
            raise ConfigError(f"{path} is damaged ({error}); pass --overwrite to start afresh") from error

    def finish(self, stage: Stage) -> Stage:
        """Note that a stage is done."""
        replace_text(self.place(stage.name) / STAGE_FILE, json.dumps(to_plain(stage), indent=2) + "\n")
        return stage

    def remove(self) -> None:
        """Remove the folder: the result is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_of(self, text: str) -> bool:
        path = self.folder / REQUEST_FILE
        return path.is_file() and path.read_text(encoding="utf-8") == text
