from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from anomseg_ros.core.resources import share_file
from anomseg_ros.errors import ConfigError
from anomseg_ros.node.parameters import PARAMETERS, fixed_parameters, live_parameters

DEFAULTS = {parameter.name: parameter.default for parameter in PARAMETERS}


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return one == other and type(one) is type(other)


def test_shipped_file_lists_every_parameter_with_default() -> None:
    path = share_file("config/detector.yaml")
    shipped = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    assert list(shipped) == list(DEFAULTS)
    assert all(same(value, DEFAULTS[name]) for name, value in shipped.items())


def test_shipped_file_comments_every_parameter() -> None:
    lines = Path(share_file("config/detector.yaml")).read_text().splitlines()
    for parameter in PARAMETERS:
        index = next(i for i, line in enumerate(lines) if line.startswith(f"    {parameter.name}:"))
        assert parameter.description in lines[index - 1]


def test_defaults_are_valid() -> None:
    assert live_parameters(DEFAULTS).threshold is None
    assert fixed_parameters(DEFAULTS).backend == "onnxruntime"


def test_descriptors_have_description_constraints_and_range() -> None:
    for parameter in PARAMETERS:
        descriptor = parameter.descriptor()
        assert descriptor.description.endswith(".")
        assert ("unconfigured" in descriptor.additional_constraints) is not parameter.live
        if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool):
            assert parameter.limits or math.isnan(parameter.default), f"{parameter.name} has no range"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("score", "viod", "'score': 'viod'; known: void"),
        ("score_encoding", "mono16", "known: mono8, 32FC1"),
        ("output_size", "camera", "known: network, source"),
        ("threshold", math.inf, "'threshold' is inf"),
        ("build_engine", "always", "'always'; known: configure, never"),
        ("fallback_backend", "onnx", "'onnx'; known: onnxruntime"),
        ("region_of_interest", [0.0, 0.0, 1.0], "left, top, right, bottom"),
        ("region_of_interest", [0.5, 0.0, 0.5, 1.0], "left < right"),
        ("region_of_interest", [0.0, 0.0, 1.0, 1.1], "bottom <= 1"),
        ("road_region", "street", "'street'; known: "),
        ("image_transport", "theora", "known: raw, compressed"),
        ("temporal_filter", "kalman", "'kalman'; known: "),
        ("alarm_frames_n", 2, "alarm_frames_n is 2, alarm_frames_m 1; expected n of m"),
    ],
)
def test_wrong_value_error_says_what_is_allowed(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        live_parameters({**DEFAULTS, name: value})
