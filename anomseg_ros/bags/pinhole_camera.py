"""The camera model of camera_info messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anomseg_ros.errors import BagError

DEFAULT_FOV_DEG = 60.0
"""Horizontal field of view in camera_info if the camera is unknown; a common value for road cameras."""


@dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics of an undistorted or plumb_bob camera: size, focal lengths and principal point in pixels.

    Pixel centres are at integer coordinates. distortion: k1, k2, t1, t2, k3 of the plumb_bob model.
    """

    width_px: int
    height_px: int
    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def with_field_of_view(cls, width_px: int, height_px: int, fov_deg: float = DEFAULT_FOV_DEG) -> PinholeCamera:
        """Return a camera with square pixels, this horizontal field of view and a centred principal point."""
        if not 0 < fov_deg < 180:
            raise BagError(f"got a field of view of {fov_deg!r} degrees; expected more than 0 and less than 180")
        focal_px = width_px / 2 / math.tan(math.radians(fov_deg) / 2)
        return cls(width_px, height_px, focal_px, focal_px, (width_px - 1) / 2, (height_px - 1) / 2)
