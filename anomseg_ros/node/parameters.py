"""The node's parameters: one table of names, defaults, ranges and descriptions; what is fixed and what changes live."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import PRECISIONS
from anomseg_ros.core.resources import ROAD_BUNDLE
from anomseg_ros.core.road_region import NO_REGION, SURFACES
from anomseg_ros.core.scores import SCORE_NAMES
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.node.health import Limits

IMAGE_TRANSPORTS = ("raw", "compressed")
SCORE_ENCODINGS = ("32FC1", "mono8")
OUTPUT_SIZES = ("network", "source")
ANY_SCORE = ("", *SCORE_NAMES)
ROAD_REGIONS = (NO_REGION, *SURFACES)


@dataclass(frozen=True)
class Parameter:
    """One parameter. limits: inclusive range of a number. choices: allowed strings. live: may change while running."""

    name: str
    default: Any
    description: str
    live: bool = False
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    def descriptor(self) -> ParameterDescriptor:
        """Return what `ros2 param describe` shows and rclpy enforces."""
        descriptor = ParameterDescriptor(description=self.description, read_only=not self.live)
        if self.choices:
            descriptor.additional_constraints = f"one of: {', '.join(map(repr, self.choices))}"
        if self.limits and isinstance(self.default, int):
            least, most = map(int, self.limits)
            descriptor.integer_range = [IntegerRange(from_value=least, to_value=most, step=0)]
        elif self.limits:
            low, high = self.limits
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
        return descriptor


PARAMETERS = (
    Parameter("bundle", ROAD_BUNDLE, "Bundle directory, or the name of a bundle that ships with the package."),
    Parameter("backend", "onnxruntime", "Engine that runs the bundle's graph.", choices=tuple(BACKENDS)),
    Parameter(
        "provider",
        "cpu",
        "What the backend runs on: cpu; cuda, tensorrt, openvino (onnxruntime); gpu (openvino); eager (torch).",
    ),
    Parameter(
        "precision", "auto", "Precision the bundle must have; auto takes it as it is.", choices=("auto", *PRECISIONS)
    ),
    Parameter("threads", 0, "Processor threads for one frame; 0 = one per core.", limits=(0, 256)),
    Parameter("arena", True, "Keep freed memory for the next frame: faster, but more resident memory."),
    Parameter("spin", False, "Let idle processor threads spin: lower latency, but cores that never rest."),
    Parameter("image_transport", "raw", "Subscribe to image or to image/compressed.", choices=IMAGE_TRANSPORTS),
    Parameter("ego_mask", "", "Image file, non-zero where the camera sees its own vehicle; those pixels are ignored."),
    Parameter("autostart", False, "Configure and activate without waiting for a lifecycle manager."),
    Parameter("score", "", "Anomaly score; empty = the bundle's default.", live=True, choices=ANY_SCORE),
    Parameter(
        "target_fpr", 0.01, "False-positive rate that picks the bundle's threshold.", live=True, limits=(0.0, 1.0)
    ),
    Parameter("threshold", math.nan, "Score threshold of the mask; nan = the bundle's for target_fpr.", live=True),
    Parameter("score_encoding", "32FC1", "Encoding of ~/anomaly/score.", live=True, choices=SCORE_ENCODINGS),
    Parameter("output_size", "network", "Size of the outputs: network or source.", live=True, choices=OUTPUT_SIZES),
    Parameter("min_component_px", 50, "Smallest area of a detection, pixels.", live=True, limits=(1, 100_000_000)),
    Parameter("jpeg_quality", 85, "Quality of ~/overlay/compressed.", live=True, limits=(1, 100)),
    Parameter(
        "region_of_interest",
        [0.0, 0.0, 1.0, 1.0],
        "left, top, right, bottom as fractions of the frame; pixels outside are ignored.",
        live=True,
    ),
    Parameter(
        "road_region",
        NO_REGION,
        "Where alarms are limited to, by the labels, with what stands there; none = no limit.",
        live=True,
        choices=ROAD_REGIONS,
    ),
    Parameter(
        "camera_timeout_s", 2.0, "Seconds without a frame that are an error; 0 = off.", live=True, limits=(0.0, 3600.0)
    ),
    Parameter(
        "max_image_age_s", 1.0, "Stamp-to-output age that is a warning; 0 = off.", live=True, limits=(0.0, 3600.0)
    ),
    Parameter("max_processing_ms", 500.0, "Time per frame that is a warning; 0 = off.", live=True, limits=(0.0, 1e6)),
)


@dataclass(frozen=True)
class Fixed:
    """Parameters that are read once, when the node is configured."""

    bundle: str
    backend: str
    options: BackendOptions
    precision: str
    image_transport: str
    ego_mask: str


@dataclass(frozen=True)
class Live:
    """Parameters that may change between two frames."""

    score: str
    target_fpr: float
    threshold: float | None
    score_encoding: str
    source_size: bool
    min_component_px: int
    jpeg_quality: int
    region_of_interest: tuple[float, float, float, float]
    road_region: str
    limits: Limits


def declare_parameters(node: Node) -> None:
    """Declare every parameter with its descriptor. Raises ConfigError for a start value that is out of range."""
    for parameter in PARAMETERS:
        try:
            node.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
        except Exception as error:  # rclpy has several classes for one mistake
            raise ConfigError(f"parameter {parameter.name!r}: {' '.join(str(error).split())}") from error


def current_values(node: Node) -> dict[str, Any]:
    """Return name -> value of every parameter in the table."""
    return {parameter.name: node.get_parameter(parameter.name).value for parameter in PARAMETERS}


def fixed_parameters(values: Mapping[str, Any]) -> Fixed:
    """Return the read-once parameters, checked. Raises ConfigError."""
    _check_choices(values)
    options = BackendOptions(**{name: values[name] for name in ("threads", "provider", "arena", "spin")})
    return Fixed(
        values["bundle"],
        values["backend"],
        options,
        values["precision"],
        values["image_transport"],
        values["ego_mask"],
    )


def live_parameters(values: Mapping[str, Any]) -> Live:
    """Return the live parameters, checked. Raises ConfigError saying which value is wrong and what is allowed."""
    _check_choices(values)
    threshold = float(values["threshold"])
    if math.isinf(threshold):
        raise ConfigError(f"parameter 'threshold' is {threshold}; give a finite score, or nan for the bundle's own")
    return Live(
        score=values["score"],
        target_fpr=values["target_fpr"],
        threshold=None if math.isnan(threshold) else threshold,
        score_encoding=values["score_encoding"],
        source_size=values["output_size"] == "source",
        min_component_px=values["min_component_px"],
        jpeg_quality=values["jpeg_quality"],
        region_of_interest=_region(values["region_of_interest"]),
        road_region=values["road_region"],
        limits=Limits(values["camera_timeout_s"], values["max_image_age_s"], values["max_processing_ms"]),
    )


def _check_choices(values: Mapping[str, Any]) -> None:
    for parameter in PARAMETERS:
        if parameter.choices and values[parameter.name] not in parameter.choices:
            raise ConfigError(
                unknown_name(f"value of parameter {parameter.name!r}:", values[parameter.name], parameter.choices)
            )


def _region(fractions: Any) -> tuple[float, float, float, float]:
    values = tuple(map(float, fractions))
    if len(values) != 4 or not (0 <= values[0] < values[2] <= 1 and 0 <= values[1] < values[3] <= 1):
        raise ConfigError(
            f"parameter 'region_of_interest' is {list(values)}; expected left, top, right, bottom with "
            "0 <= left < right <= 1 and 0 <= top < bottom <= 1"
        )
    return values[0], values[1], values[2], values[3]
