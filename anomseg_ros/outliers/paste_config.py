"""The options of pasting. Defaults are the paper's, see cut_paste.py."""

from __future__ import annotations

from dataclasses import dataclass

from anomseg_ros.errors import ConfigError, unknown_name

PLACEMENTS = ("anywhere", "road")
CUT_OBJECTS = ("anywhere", "border", "skip")


@dataclass(frozen=True)
class PasteConfig:
    """How objects are pasted. Ranges are (low, high); shares are probabilities.

    Number and size:
    objects: fewest and most per frame. scale: bounds of the factor on an object's size; an object that would be too
    small or too large there is scaled beyond them. max_share: largest share of the frame that all objects cover
    together. min_area_px: fewest pixels per object, before other objects or the frame's border cut it. max_upscale:
    largest factor of enlargement, which makes pictures soft; None for no limit.

    Place:
    low_share: objects in the lower two thirds, where the road is; others may be anywhere. placement: "anywhere", or
    "road" for objects on the ground whose size follows from the distance. size_m: longer side of an object on the
    ground, log-uniform. camera_height_m: height of the camera above the road, drawn per frame. horizon: bounds of the
    horizon's row as shares of the frame's height; within them, a labelled road tells the row. free_share: objects that
    are placed and scaled as with "anywhere". cut_share: objects that the frame's left, right or lower border cuts.
    cut_objects: objects that the border of their own picture cuts are pasted "anywhere", with the cut at the "border"
    of the frame, or not at all ("skip").

    Looks:
    feather_radius_px: standard deviation of the mask's blur, 0 for hard edges. The paper's 5 is for 1024x2048; 1 to 2
    suits frames of 480x360. feather_range_px: replaces feather_radius_px by a range, drawn per object. tone_match:
    share by which an object's mean brightness is moved to that of the place. color_match: shares by which mean and
    contrast of each channel are moved towards the frame's, drawn per object; above 0 it replaces tone_match.
    blur_match, noise_match: the same for sharpness and noise; an object that is sharper or cleaner than the frame is
    blurred or gets noise. lighting: largest relative change of brightness across an object. jpeg_share: objects with
    traces of JPEG. shadow: objects on the ground that cast a shadow.

    distractor_share: frames whose known classes get stains, shadows, patches, puddles, strokes or leaves; labels do not
    change. distractors: fewest and most of these in such a frame.
    """

    objects: tuple[int, int] = (1, 3)
    scale: tuple[float, float] = (0.5, 1.5)
    max_share: float = 0.4
    feather_radius_px: float = 5.0
    min_area_px: int = 1000
    low_share: float = 0.8
    tone_match: float = 0.4
    placement: str = "anywhere"
    horizon: tuple[float, float] = (0.35, 0.5)
    camera_height_m: tuple[float, float] = (1.2, 1.8)
    size_m: tuple[float, float] = (0.15, 2.5)
    free_share: float = 0.3
    max_upscale: float | None = None
    cut_share: float = 0.0
    cut_objects: str = "anywhere"
    feather_range_px: tuple[float, float] | None = None
    color_match: tuple[float, float] = (0.0, 0.0)
    blur_match: tuple[float, float] = (0.0, 0.0)
    noise_match: tuple[float, float] = (0.0, 0.0)
    lighting: float = 0.0
    jpeg_share: float = 0.0
    shadow: float = 0.0
    distractor_share: float = 0.0
    distractors: tuple[int, int] = (1, 3)

    def __post_init__(self) -> None:
        """Raise ConfigError for unknown choices and values out of range."""
        for name, value, options in (
            ("placement", self.placement, PLACEMENTS),
            ("cut_objects", self.cut_objects, CUT_OBJECTS),
        ):
            if value not in options:
                raise ConfigError(unknown_name(f"paste: {name}", value, options))
        feather_px = self.feather_range_px or (0.0, 0.0)
        for name, fits, expected in (
            ("objects", 1 <= self.objects[0] <= self.objects[1], "1 <= fewest <= most"),
            ("distractors", 1 <= self.distractors[0] <= self.distractors[1], "1 <= fewest <= most"),
            ("scale", _bounds(self.scale), "0 < smallest <= largest"),
            ("size_m", _bounds(self.size_m), "0 < smallest <= largest, in metres"),
            ("camera_height_m", _bounds(self.camera_height_m), "0 < lowest <= highest, in metres"),
            (
                "horizon",
                0 <= self.horizon[0] <= self.horizon[1] < 1,
                "0 <= highest <= lowest < 1, shares of the height",
            ),
            ("max_share", 0 < self.max_share <= 1, "a share above 0, at most 1"),
            ("max_upscale", self.max_upscale is None or self.max_upscale > 0, "a factor above 0, or null"),
            ("feather_radius_px", 0 <= self.feather_radius_px <= 100, "0 (hard edges) to 100 px"),
            ("feather_range_px", 0 <= feather_px[0] <= feather_px[1] <= 100, "0 <= lowest <= highest <= 100 px"),
            ("min_area_px", self.min_area_px >= 1, "at least 1 px"),
            ("tone_match", 0 <= self.tone_match <= 1, "a share of 0 to 1"),
            ("lighting", 0 <= self.lighting < 1, "0 to below 1"),
            *((name, _shares(getattr(self, name)), "0 <= lowest <= highest <= 1") for name in _MATCHES),
            *((name, 0 <= getattr(self, name) <= 1, "a probability") for name in _PROBABILITIES),
        ):
            if not fits:
                raise ConfigError(f"paste: {name} is {getattr(self, name)!r}; expected {expected}")


_MATCHES = ("color_match", "blur_match", "noise_match")
_PROBABILITIES = ("low_share", "free_share", "cut_share", "jpeg_share", "shadow", "distractor_share")


def _bounds(limits: tuple[float, float]) -> bool:
    return 0 < limits[0] <= limits[1] < float("inf")


def _shares(limits: tuple[float, float]) -> bool:
    return 0 <= limits[0] <= limits[1] <= 1
