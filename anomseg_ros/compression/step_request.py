"""The request that every step of compression extends."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from anomseg_ros.compression.drift import Guard
from anomseg_ros.core.bundle import Bundle, check_target
from anomseg_ros.errors import CompressionError, ConfigError


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """The bundle to compress, where the new bundle goes, and how it is judged. Subclasses say what to do.

    frames: folders of images, or datasets as NAME=PATH. checkpoint: the weights that the bundle was exported from.
    held_out_frames: number of frames to measure the drift on. seed: decides which frames are drawn.
    """

    bundle: Bundle
    output: Path
    frames: tuple[str, ...]
    checkpoint: Path | None = None
    guard: Guard = field(default_factory=Guard)
    held_out_frames: int = 16
    seed: int = 0
    overwrite: bool = False

    @property
    def shared(self) -> dict[str, Any]:
        """The fields that the requests of all steps have."""
        return {one.name: getattr(self, one.name) for one in fields(StepRequest)}

    def check(self) -> None:
        """Raise BundleError, CheckpointError or ConfigError for requests that cannot work."""
        if self.output.resolve() == self.bundle.directory.resolve():
            raise ConfigError(f"`output` {str(self.output)!r} is the bundle itself, which is never changed")
        check_target(self.output, self.overwrite)


def require_float(bundle: Bundle) -> None:
    """Raise CompressionError unless a bundle is float32."""
    name, precision = bundle.contract.name, bundle.contract.precision
    if precision != "fp32":
        raise CompressionError(f"bundle {name!r} is {precision} already; give the float bundle that it was made from")
