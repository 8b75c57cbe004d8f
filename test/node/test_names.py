"""Names that a user gives: parameter files whose parameters ROS 2 would give to no node."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.errors import ConfigError
from anomseg_ros.node.names import check_parameter_files


@pytest.mark.parametrize(
    ("text", "node", "fits"),
    [
        ("detector: {ros__parameters: {}}", "/detector", True),
        ("/detector: {ros__parameters: {}}", "/detector", True),
        ("detector: {ros__parameters: {}}", "/front/detector", False),
        ("front: {detector: {ros__parameters: {}}}", "/front/detector", True),
        ("/front/detector: {ros__parameters: {}}", "/front/detector", True),
        ("/**: {ros__parameters: {}}", "/front/detector", True),
        ("/**/detector: {ros__parameters: {}}", "/detector", True),
        ("/*: {ros__parameters: {}}", "/detector", True),
        ("/*: {ros__parameters: {}}", "/front/detector", False),
        ("/*/detector: {ros__parameters: {}}", "/front/detector", True),
        ("camera: {ros__parameters: {}}\ndetector: {ros__parameters: {}}", "/detector", True),
        ("[]", "/detector", False),
    ],
)
def test_parameter_file_must_have_parameters_for_node(tmp_path: Path, text: str, node: str, fits: bool) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(text)
    words = ["--ros-args", "--params-file", str(path), "-p", "bundle:=x"]
    if fits:
        check_parameter_files(words, node)
        return
    with pytest.raises(ConfigError, match=f"not for this node, '{node}'; begin it with /"):
        check_parameter_files(words, node)
