"""Colours as people see them: differences of two colours, with full colour vision and without one kind of cones.

Colours are sRGB, 0 to 255. Lab is CIE 1976 L*a*b* for the white point D65, with the primaries of IEC 61966-2-1. The
matrices of protanopia and deuteranopia are those of Machado, Oliveira and Fernandes, "A Physiologically-based Model for
Simulation of Color Vision Deficiency" (IEEE TVCG 15(6), 2009), at severity 1.0; they apply to linear RGB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Colors = npt.NDArray[np.float64]

VISIONS: dict[str, Colors] = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""Kind of colour vision -> matrix on linear RGB."""

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)


def lab_colors(colors: npt.ArrayLike, vision: str = "full") -> Colors:
    """Return float64 (..., 3) Lab of sRGB colours (..., 3), as a person with this colour vision sees them."""
    srgb = np.asarray(colors, np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISIONS[vision].T, 0, 1)
    share = seen @ _TO_XYZ.T / _WHITE
    root = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def color_difference(one: npt.ArrayLike, other: npt.ArrayLike) -> Colors:
    """Return the CIEDE2000 differences of Lab colours (..., 3), broadcast; 1 can just be told apart side by side.

    Equations 2 to 22 of Sharma, Wu and Dalal, "The CIEDE2000 Color-Difference Formula" (Color Research and Application
    30(1), 2005), with k_L = k_C = k_H = 1.
    """
    (l1, a1, b1), (l2, a2, b2) = (np.moveaxis(np.asarray(lab, np.float64), -1, 0) for lab in (one, other))
    g = 0.5 * (1 - _chroma_share((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2))
    c1, c2 = np.hypot((1 + g) * a1, b1), np.hypot((1 + g) * a2, b2)
    h1, h2 = np.arctan2(b1, (1 + g) * a1), np.arctan2(b2, (1 + g) * a2)
    # A grey has no hue: it takes that of the other colour.
    h1, h2 = np.where(c1 == 0, h2, h1), np.where(c2 == 0, h1, h2)
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi
    hue, lightness, chroma = h1 + turn / 2, (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(hue - np.pi / 6) + 0.24 * np.cos(2 * hue)
    t += 0.32 * np.cos(3 * hue + np.radians(6)) - 0.20 * np.cos(4 * hue - np.radians(63))
    by_lightness = (l2 - l1) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    by_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    by_hue = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * chroma * t)
    blue = np.radians(60) * np.exp(-((((np.degrees(hue) % 360) - 275) / 25) ** 2))
    rotation = -2 * _chroma_share(chroma) * np.sin(blue)
    squared = by_lightness**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


def smallest_differences(colors: npt.ArrayLike, others: npt.ArrayLike) -> Colors:
    """Return float64 (N,): CIEDE2000 difference of N sRGB colours to the nearest of M others, smallest over VISIONS."""
    by_vision = [
        color_difference(lab_colors(colors, vision)[:, None], lab_colors(others, vision)[None]).min(axis=1)
        for vision in VISIONS
    ]
    return np.asarray(np.min(by_vision, axis=0))


def _chroma_share(chroma: Colors) -> Colors:
    return np.asarray(np.sqrt(chroma**7 / (chroma**7 + 25.0**7)))
