"""`anomseg policy`: print the SROS 2 policy of the detector for its cameras."""

from __future__ import annotations

import argparse

from rclpy.exceptions import NameValidationException
from rclpy.validate_namespace import validate_namespace

from anomseg_ros.commands import options
from anomseg_ros.core.output_files import write_file
from anomseg_ros.errors import ConfigError
from anomseg_ros.node.cameras import read_cameras
from anomseg_ros.node.names import check_topic
from anomseg_ros.node.policy import SecuredNode, policy


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg policy`."""
    parser = options.parser(
        "policy", "Print the SROS 2 policy of the detector: the topics and services of its nodes, and no others."
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--cameras", metavar="FILE", help="YAML file of cameras, such as config/cameras.yaml")
    topic_help = "topic of the camera, with camera_info in the same namespace"
    source.add_argument("--image-topic", default="/camera/image", help=topic_help)
    parser.add_argument("--namespace", default="/", help="namespace of the node without --cameras")
    parser.add_argument("--enclave", default="/detector", help="enclave of the process")
    parser.add_argument("--use-sim-time", action="store_true", help="allow /clock, for replayed bags")
    parser.add_argument(
        "--output", type=options.output_file, metavar="FILE", help="file to write (default: standard output)"
    )
    return parser


def main(argv: list[str]) -> int:
    """Print the policy, or write it to --output; return 0."""
    args = argument_parser().parse_args(argv)
    if args.cameras:
        nodes = [SecuredNode.of_camera(camera) for camera in read_cameras(args.cameras)]
    else:
        nodes = [_single_node(args.namespace, args.image_topic)]
    text = policy(nodes, _full_name("--enclave", args.enclave), use_sim_time=args.use_sim_time)
    if args.output:
        write_file(args.output, text)
    else:
        print(text, end="")
    return 0


def _single_node(namespace: str, image_topic: str) -> SecuredNode:
    namespace = _full_name("--namespace", namespace)
    check_topic(image_topic, "--image-topic", namespace)
    return SecuredNode(namespace, image_topic)


def _full_name(option: str, name: str) -> str:
    """Return a namespace or enclave with a leading /. Raises ConfigError."""
    full = name if name.startswith("/") else f"/{name}"
    try:
        validate_namespace(full)
    except NameValidationException as error:
        raise ConfigError(f"{option}: {' '.join(str(error).split())}") from error
    return full
