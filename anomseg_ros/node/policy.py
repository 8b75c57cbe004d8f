"""The SROS 2 policy of the detector: the topics and services that its nodes use, and no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from rclpy.expand_topic_name import expand_topic_name

from anomseg_ros.node import pipeline
from anomseg_ros.node.cameras import Camera, remappings

NODE = "detector"
CLOCK = "/clock"
PUBLISHED = (
    *pipeline.OUTPUTS,
    "~/label_info",
    "~/transition_event",
    "/diagnostics",
    "/parameter_events",
    "/rosout",
)
SERVICES = (
    "~/change_state",
    "~/get_available_states",
    "~/get_available_transitions",
    "~/get_state",
    "~/get_transition_graph",
    "~/describe_parameters",
    "~/get_parameter_types",
    "~/get_parameters",
    "~/list_parameters",
    "~/set_parameters",
    "~/set_parameters_atomically",
    "~/get_type_description",
)
COMMENT = """
  The permissions of the detector in a secured ROS 2 graph (SROS 2), written by `anomseg policy`; docs/deploy.md has the
  commands that use it. Names that begin with ~ are relative to their node.
"""


@dataclass(frozen=True)
class SecuredNode:
    """A node of the detector: its namespace, beginning with /, and the topics of its camera."""

    namespace: str
    image_topic: str
    camera_info_topic: str | None = None

    @classmethod
    def of_camera(cls, camera: Camera) -> SecuredNode:
        """Return the node of an entry of the cameras file."""
        return cls(f"/{camera.name}", camera.image_topic, camera.camera_info_topic)

    @property
    def subscribed(self) -> list[str]:
        """The full names of the topics to which the node subscribes: relative ones and those with ~ are expanded."""
        topics = [rule.partition(":=")[2] for rule in remappings(self.image_topic, self.camera_info_topic)]
        return [expand_topic_name(topic, NODE, self.namespace) for topic in topics]


def policy(nodes: Iterable[SecuredNode], enclave: str, *, use_sim_time: bool = False) -> str:
    """Return the XML text of the policy.

    Args:
        nodes: the nodes of one process, or of several processes with the same enclave.
        enclave: path of the enclave, such as /detector.
        use_sim_time: the nodes take the time from /clock.
    """
    root = ElementTree.Element("policy", version="0.2.0")
    profiles = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(root, "enclaves"), "enclave", path=enclave), "profiles"
    )
    for node in nodes:
        profile = ElementTree.SubElement(profiles, "profile", ns=node.namespace, node=NODE)
        subscribed = [*node.subscribed, CLOCK] if use_sim_time else node.subscribed
        _allow(profile, "topic", "subscribe", subscribed)
        _allow(profile, "topic", "publish", PUBLISHED)
        _allow(profile, "service", "reply", SERVICES)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<!--{COMMENT}-->\n{text}\n'


def _allow(profile: ElementTree.Element, kind: str, right: str, names: Sequence[str]) -> None:
    group = ElementTree.SubElement(profile, f"{kind}s", {right: "ALLOW"})
    for name in names:
        ElementTree.SubElement(group, kind).text = name
