"""Names that a user gives: topics, parameter files for nodes, and parameters of the QoS of topics."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.validate_full_topic_name import validate_full_topic_name
from rclpy.validate_namespace import validate_namespace

from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import ConfigError, unknown_name

PARAMETERS_KEY = "ros__parameters"
QOS_OVERRIDES = "qos_overrides."
"""Prefix of the parameters that the publishers and subscriptions declare themselves."""
QOS_POLICIES = ("history", "depth", "reliability")
"""The policies that rclpy's QoSOverridingOptions.with_default_policies() lets parameters override."""


def check_topic(name: str, what: str, namespace: str = "/") -> None:
    """Raise ConfigError if ROS 2 does not accept a topic name. what: the setting that has the name."""
    try:
        validate_full_topic_name(expand_topic_name(name, "detector", namespace))
    except Exception as error:  # rclpy raises several classes
        raise ConfigError(f"{what} is {name!r}: {_reason(error)}; give a topic such as /camera/image") from error


def check_namespace(name: str, what: str) -> None:
    """Raise ConfigError if ROS 2 does not accept a namespace. what: the setting that has the name."""
    try:
        validate_namespace(f"/{name}")
    except Exception as error:
        raise ConfigError(f"{what} is {name!r}: {_reason(error)}") from error


def check_qos_override(name: str, known: Collection[str] | None = None) -> None:
    """Raise ConfigError for a parameter of that prefix that no publisher or subscription declares.

    known: the names that are declared; None if only the policy can be checked.
    """
    policy = name.rpartition(".")[2]
    if policy not in QOS_POLICIES:
        raise ConfigError(unknown_name(f"QoS policy of parameter {name!r}:", policy, QOS_POLICIES))
    if known is not None and name not in known:
        raise ConfigError(unknown_name("parameter", name, known))


def check_qos_overrides(nodes: Sequence[Any]) -> None:
    """Raise ConfigError for an initial QoS parameter that no node of the process declares.

    nodes: with `qos_override_names`. All nodes of a process get the parameters of its command line.
    """
    known = list(dict.fromkeys(name for node in nodes for name in node.qos_override_names))
    for node in nodes:
        for name in node._parameter_overrides:
            if name.startswith(QOS_OVERRIDES):
                check_qos_override(name, known)


def qos_overrides(node: Node, published: Collection[str], subscribed: Collection[str]) -> list[str]:
    """Return the names of the parameters that override the QoS of these topics of a node."""
    entities = [(topic, "publisher") for topic in published] + [(topic, "subscription") for topic in subscribed]
    return [
        f"{QOS_OVERRIDES}{node.resolve_topic_name(topic)}.{entity}.{policy}"
        for topic, entity in entities
        for policy in QOS_POLICIES
    ]


def check_parameter_files(ros_arguments: Sequence[str], node: str) -> None:
    """Raise ConfigError if a file of --params-file has no parameters for a node, which ROS 2 passes over in silence.

    node: full name, such as /front/detector.
    """
    for option, file in itertools.pairwise(ros_arguments):
        if option != "--params-file":
            continue
        try:
            sections = list(_sections(parse_yaml(Path(file).read_text(encoding="utf-8"))))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"parameter file {file!r}: {_reason(error)}") from error
        if not any(_pattern(section).fullmatch(node) for section in sections):
            names = ", ".join(map(repr, sections)) or "no node"
            raise ConfigError(
                f"parameter file {file!r} has parameters for {names}, not for this node, {node!r}; begin it with /**: "
                "for every node"
            )


def _sections(data: Any, name: str = "") -> Iterator[str]:
    """Yield the name, perhaps with wildcards, of each node to which a parsed parameter file gives parameters."""
    for key, value in data.items() if isinstance(data, Mapping) else ():
        if key == PARAMETERS_KEY:
            yield name or "/"
        else:
            yield from _sections(value, f"{name}/{str(key).strip('/')}")


def _pattern(section: str) -> re.Pattern[str]:
    """Return the nodes of a section: * stands for one token of a name, ** for any number of them."""
    wildcards = {"*": r"/\w+", "**": r"(/\w+)*"}
    tokens = section.strip("/").split("/")
    return re.compile("".join(wildcards.get(token, f"/{re.escape(token)}") for token in tokens))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).split(", at /")[0]
