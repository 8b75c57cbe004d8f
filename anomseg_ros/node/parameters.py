"""The parameters of the node: a table of names, defaults, ranges and descriptions, and checks of their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.backend_options import BUILD_ENGINE, MAX_DEVICE, NEVER, PROVIDERS_IN_WORDS, BackendOptions
from anomseg_ros.core.bundle import PRECISIONS, Contract
from anomseg_ros.core.resources import ROAD_BUNDLE
from anomseg_ros.core.road_region import NO_REGION, SURFACES
from anomseg_ros.core.temporal_filter import FILTERS, NO_FILTER, TIME_CONSTANTS_S, FilterSpec
from anomseg_ros.core.tracks import LONGEST_WINDOW, AlarmRule, check_alarm_frames
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.node.health import Limits
from anomseg_ros.node.names import QOS_OVERRIDES, check_qos_override
from anomseg_ros.scores import SCORES

IMAGE_TRANSPORTS = ("raw", "compressed")
SCORE_ENCODINGS = ("32FC1", "mono8")
OUTPUT_SIZES = ("network", "source")
SCORE_CHOICES = ("", *SCORES)
ROAD_REGIONS = (NO_REGION, *SURFACES)
OPTIONS = ("threads", "provider", "arena", "spin", "device", "build_engine", "fallback_backend")
"""Parameters that are fields of BackendOptions."""


@dataclass(frozen=True)
class Parameter:
    """One parameter. live: can change while the node runs. limits: inclusive range. choices: allowed strings."""

    name: str
    default: Any
    description: str
    live: bool = False
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    def descriptor(self) -> ParameterDescriptor:
        """Return the descriptor that `ros2 param describe` shows and rclpy enforces."""
        constraints = [] if self.live else ["only while the node is unconfigured"]
        if self.choices:
            constraints.append(f"one of: {', '.join(map(repr, self.choices))}")
        descriptor = ParameterDescriptor(description=self.description, additional_constraints="; ".join(constraints))
        # `ros2 param load` sets the nan that `ros2 param dump` has written as a string.
        descriptor.dynamic_typing = isinstance(self.default, float) and math.isnan(self.default)
        if self.limits and isinstance(self.default, int):
            low, high = map(int, self.limits)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
        elif self.limits:
            start, end = self.limits
            descriptor.floating_point_range = [FloatingPointRange(from_value=start, to_value=end, step=0.0)]
        return descriptor

    def typed(self, value: Any) -> Any:
        """Return a value from a YAML file in the parameter's type. Raises ConfigError for a wrong type or range."""
        if isinstance(self.default, (float, list)):
            numbers = value if isinstance(value, list) else [value]
            if isinstance(value, list) == isinstance(self.default, list) and all(map(_is_number, numbers)):
                value = list(map(float, numbers)) if isinstance(value, list) else float(value)
        if type(value) is not type(self.default):
            kind = type(self.default).__name__
            raise ConfigError(f"parameter {self.name!r} is {value!r}; expected {kind}: {self.description}")
        if self.limits and not self.limits[0] <= value <= self.limits[1]:
            low, high = self.limits
            raise ConfigError(f"parameter {self.name!r} is {value!r}; expected {low:g} to {high:g}: {self.description}")
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


PARAMETERS = (
    Parameter("bundle", ROAD_BUNDLE, "Bundle directory, or the name of a bundle that ships with the package."),
    Parameter("backend", "onnxruntime", "Engine that runs the bundle's graph.", choices=tuple(BACKENDS)),
    Parameter(
        "provider",
        "cpu",
        f"Device or mode of the backend: {PROVIDERS_IN_WORDS}.",
    ),
    Parameter(
        "precision", "auto", "Precision that the bundle must have; auto accepts any.", choices=("auto", *PRECISIONS)
    ),
    Parameter("threads", 0, "Processor threads for one frame; 0 = one per core.", limits=(0, 256)),
    Parameter("arena", True, "Keep freed memory for the next frame: faster, but more resident memory."),
    Parameter("spin", False, "Let idle processor threads spin: lower latency, but the cores are always busy."),
    Parameter("device", 0, "Index of the GPU, for backends that run on NVIDIA's.", limits=(0, MAX_DEVICE)),
    Parameter(
        "build_engine",
        NEVER,
        "Whether backends tensorrt and torch (aot) build missing engines in configure, or leave that to anomseg build.",
        choices=BUILD_ENGINE,
    ),
    Parameter(
        "fallback_backend",
        "",
        "Backend to use if the requested one cannot be opened, an error in the diagnostics.",
        choices=("", *BACKENDS),
    ),
    Parameter(
        "image_transport",
        "raw",
        "Subscribe to image (raw) or image/compressed; CompressedImage on image is accepted too.",
        choices=IMAGE_TRANSPORTS,
    ),
    Parameter(
        "ego_mask",
        "",
        "Image file in the camera's aspect ratio, non-zero where it sees its own vehicle; these pixels are ignored.",
    ),
    Parameter("autostart", False, "Configure and activate without waiting for a lifecycle manager."),
    Parameter("score", "", "Anomaly score; empty = the bundle's default.", live=True, choices=SCORE_CHOICES),
    Parameter(
        "target_fpr", 0.01, "False-positive rate that selects the bundle's threshold.", live=True, limits=(0.0, 1.0)
    ),
    Parameter(
        "target_alarms_per_minute",
        0.0,
        "Alarms per minute that select the bundle's threshold; 0 = off: target_fpr selects it.",
        live=True,
        limits=(0.0, 1e6),
    ),
    Parameter(
        "threshold", math.nan, "Score threshold of the mask; nan = the bundle's threshold for target_fpr.", live=True
    ),
    Parameter("score_encoding", "32FC1", "Encoding of ~/anomaly/score.", live=True, choices=SCORE_ENCODINGS),
    Parameter("output_size", "network", "Size of the outputs: network or source.", live=True, choices=OUTPUT_SIZES),
    Parameter("min_component_px", 50, "Smallest area of a detection, pixels.", live=True, limits=(1, 100_000_000)),
    Parameter("jpeg_quality", 85, "JPEG quality of ~/overlay/compressed.", live=True, limits=(1, 100)),
    Parameter(
        "region_of_interest",
        [0.0, 0.0, 1.0, 1.0],
        "Left, top, right and bottom as fractions of the frame; pixels outside are ignored.",
        live=True,
    ),
    Parameter(
        "road_region",
        NO_REGION,
        "Limit alarms to this surface and objects on it; none = no limit.",
        live=True,
        choices=ROAD_REGIONS,
    ),
    Parameter(
        "temporal_filter",
        NO_FILTER,
        "Smooth the score over time; warped moves the past with the scene.",
        live=True,
        choices=FILTERS,
    ),
    Parameter(
        "filter_time_constant_s",
        0.1,
        "Time constant of the temporal filter, seconds: it passes 63 % of a change in this time.",
        live=True,
        limits=TIME_CONSTANTS_S,
    ),
    Parameter(
        "alarm_frames_n",
        1,
        "A detection becomes an alarm once this many of the last alarm_frames_m frames show it.",
        live=True,
        limits=(1, LONGEST_WINDOW),
    ),
    Parameter(
        "alarm_frames_m",
        1,
        "Number of frames that alarm_frames_n refers to; at least alarm_frames_n.",
        live=True,
        limits=(1, LONGEST_WINDOW),
    ),
    Parameter(
        "track_timeout_s",
        0.5,
        "Time after which the track of an unseen detection ends, seconds.",
        live=True,
        limits=(0.01, 60.0),
    ),
    Parameter(
        "camera_timeout_s", 2.0, "Longest time without a frame, seconds; 0 = off.", live=True, limits=(0.0, 3600.0)
    ),
    Parameter(
        "output_timeout_s",
        3.0,
        "Longest time for one frame, seconds; a longer one means that inference is stuck; 0 = off.",
        live=True,
        limits=(0.0, 3600.0),
    ),
    Parameter(
        "min_rate_hz",
        0.0,
        "Expected rate, frames per second; a lower rate of processed frames is an error; 0 = off.",
        live=True,
        limits=(0.0, 1000.0),
    ),
    Parameter(
        "max_image_age_s",
        1.0,
        "Largest age, seconds: older stamps on arrival are an error, older outputs a warning; 0 = off.",
        live=True,
        limits=(0.0, 3600.0),
    ),
    Parameter(
        "max_stamp_lead_s",
        0.2,
        "Largest lead of a stamp over the node's clock, seconds; 0 = off.",
        live=True,
        limits=(0.0, 3600.0),
    ),
    Parameter(
        "max_processing_ms",
        500.0,
        "Longest processing time without a warning, milliseconds; 0 = off.",
        live=True,
        limits=(0.0, 1e6),
    ),
    Parameter("health_window_s", 3.0, "Time window of the diagnostics, seconds.", live=True, limits=(0.5, 60.0)),
    Parameter("hardware_id", "", "hardware_id of the diagnostics; empty = the camera's frame_id.", live=True),
)


@dataclass(frozen=True)
class FixedParameters:
    """The parameters that the node reads only when it is configured."""

    bundle: str
    backend: str
    options: BackendOptions
    precision: str
    image_transport: str
    ego_mask: str

    def check_precision(self, contract: Contract) -> None:
        """Raise ConfigError if a bundle does not have the requested precision."""
        if self.precision not in ("auto", contract.precision):
            raise ConfigError(
                f"parameter 'precision' asks for {self.precision}, bundle {contract.name!r} is {contract.precision}; "
                "give a bundle of that precision, or set precision to auto"
            )


@dataclass(frozen=True)
class LiveParameters:
    """The parameters that may change between two frames."""

    score: str
    target_fpr: float
    target_alarms_per_minute: float
    threshold: float | None
    score_encoding: str
    source_size: bool
    jpeg_quality: int
    region_of_interest: tuple[float, float, float, float]
    road_region: str
    filter: FilterSpec
    alarm_rule: AlarmRule
    limits: Limits


def declare_parameters(node: Node) -> None:
    """Declare every parameter with its descriptor.

    Raises ConfigError for an initial value that is out of range or belongs to an unknown parameter.
    """
    for parameter in PARAMETERS:
        try:
            node.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
        except Exception as error:  # rclpy raises several classes for a wrong value
            raise ConfigError(f"parameter {parameter.name!r}: {' '.join(str(error).split())}") from error
    # The initial values, for which rclpy has no public name. Publishers declare their QoS parameters later, and
    # check_qos_overrides checks them for all nodes of the process.
    for name in node._parameter_overrides:
        if not name.startswith(QOS_OVERRIDES) and not node.has_parameter(name):
            raise ConfigError(unknown_name("parameter", name, (parameter.name for parameter in PARAMETERS)))


def check_only_live_changed(values: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Raise ConfigError if one of the changed values belongs to a parameter that is not live."""
    for parameter in PARAMETERS:
        if not parameter.live and changed.get(parameter.name, values[parameter.name]) != values[parameter.name]:
            raise ConfigError(
                f"parameter {parameter.name!r} is read-only while the node is configured; clean up the node, set the "
                "parameter, and configure the node again"
            )


def current_values(node: Node) -> dict[str, Any]:
    """Return the current value of every parameter in the table, by name."""
    return {parameter.name: node.get_parameter(parameter.name).value for parameter in PARAMETERS}


def checked_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the types of their parameters.

    Raises ConfigError for an unknown name, and for a value that the node would refuse, given that all other parameters
    have their defaults.
    """
    parameters = {parameter.name: parameter for parameter in PARAMETERS}
    typed = dict(values)
    for name, value in values.items():
        if name in parameters:
            typed[name] = parameters[name].typed(value)
        elif name.startswith(QOS_OVERRIDES):
            check_qos_override(name)
            if not isinstance(value, (int, str)):
                raise ConfigError(f"parameter {name!r} is {value!r}; expected a number or a name of the policy")
        else:
            raise ConfigError(unknown_name("parameter", name, parameters))
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    fixed_parameters(defaults | typed)
    live_parameters(defaults | typed)
    return typed


def fixed_parameters(values: Mapping[str, Any]) -> FixedParameters:
    """Check and return the parameters that are not live. Raises ConfigError."""
    _check_choices(values)
    options = BackendOptions(**{name: values[name] for name in OPTIONS})
    return FixedParameters(
        values["bundle"],
        values["backend"],
        options,
        values["precision"],
        values["image_transport"],
        values["ego_mask"],
    )


def live_parameters(values: Mapping[str, Any]) -> LiveParameters:
    """Check and return the live parameters. Raises ConfigError that names the wrong value and the allowed ones."""
    _check_choices(values)
    return LiveParameters(
        score=values["score"],
        target_fpr=values["target_fpr"],
        target_alarms_per_minute=values["target_alarms_per_minute"],
        threshold=_threshold(values["threshold"]),
        score_encoding=values["score_encoding"],
        source_size=values["output_size"] == "source",
        jpeg_quality=values["jpeg_quality"],
        region_of_interest=_region(values["region_of_interest"]),
        road_region=values["road_region"],
        filter=FilterSpec(values["temporal_filter"], values["filter_time_constant_s"]),
        alarm_rule=_alarm_rule(values),
        limits=Limits(
            window_s=values["health_window_s"],
            **{field.name: values[field.name] for field in fields(Limits) if field.name != "window_s"},
        ),
    )


def _check_choices(values: Mapping[str, Any]) -> None:
    for parameter in PARAMETERS:
        if parameter.choices and values[parameter.name] not in parameter.choices:
            raise ConfigError(
                unknown_name(f"value of parameter {parameter.name!r}:", values[parameter.name], parameter.choices)
            )


def _alarm_rule(values: Mapping[str, Any]) -> AlarmRule:
    frames_n, frames_m = values["alarm_frames_n"], values["alarm_frames_m"]
    check_alarm_frames(frames_n, frames_m)
    return AlarmRule(values["min_component_px"], frames_n, frames_m, values["track_timeout_s"])


def _threshold(value: Any) -> float | None:
    """Return the value as a number, None for nan. Accepts a string as well (see Parameter.descriptor)."""
    try:
        threshold = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        threshold = math.inf
    if math.isinf(threshold):
        raise ConfigError(f"parameter 'threshold' is {value!r}; give a finite score, or nan for the bundle's threshold")
    return None if math.isnan(threshold) else threshold


def _region(fractions: Any) -> tuple[float, float, float, float]:
    values = tuple(map(float, fractions))
    if len(values) != 4 or not (0 <= values[0] < values[2] <= 1 and 0 <= values[1] < values[3] <= 1):
        raise ConfigError(
            f"parameter 'region_of_interest' is {list(values)}; expected left, top, right, bottom with "
            "0 <= left < right <= 1 and 0 <= top < bottom <= 1"
        )
    return values[0], values[1], values[2], values[3]
