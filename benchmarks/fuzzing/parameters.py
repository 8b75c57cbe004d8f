"""Values of every type for the node's parameters, on a real node: one without a model, one with."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import rclpy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from anomseg_ros.node import pipeline
from anomseg_ros.node.detector_node import DetectorNode
from anomseg_ros.node.parameters import PARAMETERS, current_values, fixed_parameters, live_parameters
from anomseg_ros.replay.process import free_domain_id
from fuzzing.odd_values import odd_float, odd_integer, odd_text
from fuzzing.targets import Target

NAMES = tuple(parameter.name for parameter in PARAMETERS if parameter.name != "autostart")


class Case(NamedTuple):
    """Parameters set in one request, on the node with a model or on the one without."""

    parameters: tuple[Parameter, ...]
    configured: bool


class Parameters(Target):
    """Requests to set parameters: each is refused with a reason, or taken and then valid."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Start both nodes."""
        super().__init__(folder, bundle)
        self.context = rclpy.Context()
        self.context.init(domain_id=free_domain_id())
        self.nodes = {configured: self._node(configured) for configured in (False, True)}

    def _node(self, configured: bool) -> DetectorNode:
        words = ["--ros-args", "-p", f"bundle:={self.bundle}", "-p", "threads:=1", "-r", f"__ns:=/fuzz_{configured}"]
        words += ["--log-level", "fatal"]
        node = DetectorNode(context=self.context, cli_args=words, use_global_arguments=False)
        assert not configured or node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        return node

    def make(self, rng: Random) -> Case:
        """Return one to four parameters."""
        names = rng.sample(NAMES, rng.choice((1, 1, 1, 2, 4)))
        return Case(tuple(odd_parameter(rng, name) for name in names), rng.random() < 0.5)

    def check(self, case: Case) -> None:
        """What was refused left no trace; what was taken is there; the node's values are valid in any case."""
        node = self.nodes[case.configured]
        before = current_values(node)
        result = node.set_parameters_atomically(list(case.parameters))
        after = current_values(node)
        asked = {parameter.name: parameter.value for parameter in case.parameters}
        if result.successful:
            assert all(_same(after[name], asked.get(name, value)) for name, value in before.items()), "not as asked"
        else:
            assert result.reason, "refused without a reason"
            assert all(_same(after[name], value) for name, value in before.items()), "changed although refused"
        fixed_parameters(after)
        live = live_parameters(after)
        if case.configured:
            pipeline.resolve(live, node._pipeline.detector.bundle)

    def close(self) -> None:
        """End both nodes."""
        for node in self.nodes.values():
            node.shut_down()
            node.destroy_node()
        self.context.try_shutdown()


def odd_parameter(rng: Random, name: str) -> Parameter:
    """Return a parameter with a value of its own type, at an edge of its range or among its choices, or of another."""
    declared = next(parameter for parameter in PARAMETERS if parameter.name == name)
    kind = rng.random()
    if kind < 0.2 and declared.choices:
        return Parameter(name, value=rng.choice(declared.choices))
    if kind < 0.4 and declared.limits:
        edge = rng.choice(declared.limits)
        value = type(declared.default)(edge + rng.choice((-1, 0, 1)))
        return Parameter(name, value=value)
    if kind < 0.5:
        return Parameter(name, value=declared.default)
    makes = {
        Parameter.Type.BOOL: lambda: rng.random() < 0.5,
        Parameter.Type.INTEGER: lambda: odd_integer(rng) * rng.choice((1, -1, 2**31)),
        Parameter.Type.DOUBLE: lambda: odd_float(rng),
        Parameter.Type.STRING: lambda: odd_text(rng).replace("\x00", ""),
        Parameter.Type.BYTE_ARRAY: lambda: [bytes([rng.randrange(256)]) for _ in range(rng.randrange(5))],
        Parameter.Type.BOOL_ARRAY: lambda: [rng.random() < 0.5 for _ in range(rng.randrange(5))],
        Parameter.Type.INTEGER_ARRAY: lambda: [odd_integer(rng) for _ in range(rng.randrange(6))],
        Parameter.Type.DOUBLE_ARRAY: lambda: [odd_float(rng) for _ in range(rng.choice((0, 3, 4, 4, 4, 5)))],
        Parameter.Type.STRING_ARRAY: lambda: [odd_text(rng).replace("\x00", "") for _ in range(rng.randrange(5))],
        Parameter.Type.NOT_SET: lambda: None,
    }
    own = Parameter.Type.from_parameter_value(declared.default)
    chosen = own if rng.random() < 0.6 else rng.choice(tuple(makes))
    return Parameter(name, chosen, makes[chosen]())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, (str, bool, int, float)) or one is None:
        return bool(one == other)
    return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
