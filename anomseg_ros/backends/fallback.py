"""Another backend in place of one that cannot be opened, which is never hidden: `actual` differs from `requested`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.detector import Backend, backend_facts
from anomseg_ros.core.types import RgbImage


class FallbackBackend:
    """Runs on another backend than the one that was asked for."""

    def __init__(self, requested: str, reason: str, inner: Backend) -> None:
        """reason: why the one that was asked for cannot be opened."""
        self.requested = requested
        self.reason = reason
        self._inner = inner

    @property
    def actual(self) -> str:
        """Of the backend in use."""
        return self._inner.actual

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph; see Backend.run."""
        return self._inner.run(tensor, outputs)

    def facts(self) -> dict[str, str]:
        """Return why it is in use, and the facts of the backend in use."""
        return {"fallback_reason": self.reason, **backend_facts(self._inner)}

    def close(self) -> None:
        """Release the backend in use."""
        self._inner.close()
