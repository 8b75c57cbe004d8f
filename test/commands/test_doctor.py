"""`anomseg doctor` on this machine, and on machines where something is absent or broken."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
import rclpy
from sensor_msgs.msg import Image

from anomseg_ros import doctor
from anomseg_ros.cli import main
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.doctor import cameras, inference, packages, ros
from anomseg_ros.doctor.finding import ABSENT, OK, PROBLEM, Finding
from anomseg_ros.node.self_test import image_topics


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


@pytest.mark.slow
def test_this_machine_has_no_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", str(tmp_path / "findings.json")]) == 0
    findings = [Finding(**row) for row in json.loads((tmp_path / "findings.json").read_text())]
    found = states(findings)
    assert {found[name] for name in ("libraries", "onnxruntime", "openvino", "messages", "enet-synthetic")} == {OK}
    assert {finding.area for finding in findings} == set(doctor.CHECKS)
    texts = {finding.name: finding.text for finding in findings}
    assert "ms per frame" in texts["onnxruntime"] and "of the labels equal onnxruntime's" in texts["openvino"]
    assert "an image of 512x1024 arrived after" in texts["messages"]
    printed = capsys.readouterr().out
    assert all(finding.name in printed for finding in findings) and printed.endswith("no problems\n")


def test_problem_sets_the_exit_status_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(find_bundle("enet-synthetic"), tmp_path / "damaged")
    with (tmp_path / "damaged" / "model.onnx").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(inference, "shipped_bundles", lambda: {"damaged": tmp_path / "damaged"})
    monkeypatch.setattr(doctor, "CHECKS", {"models": doctor.CHECKS["models"]})
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "problem damaged: " in printed and "-> pip install the package again" in printed
    assert printed.endswith("1 problem; what to do is below each\n")


def test_a_slow_check_says_what_it_does_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []

    def check() -> list[Finding]:
        printed.append(capsys.readouterr().out)
        return []

    monkeypatch.setattr(inference, "check_backends", check)
    monkeypatch.setattr(doctor, "CHECKS", {"backends": doctor.CHECKS["backends"]})
    assert main(["doctor"]) == 0
    assert printed == ["\nbackends\n  a self-test frame is run on each backend, which takes seconds …\n"]
    monkeypatch.undo()
    assert set(doctor.SLOW) < set(doctor.CHECKS)


def test_installation_without_bundles_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "shipped_bundles", dict)
    assert states(list(inference.check_models())) == {"bundles": PROBLEM}


def test_check_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "DEVICES", None)
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in ("cameras", "models")})
    first, *others = doctor.examine()
    assert first.state == PROBLEM and first.text.startswith("stopped: AttributeError")
    assert len(others) > 3


@pytest.mark.slow
def test_backend_that_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "anomseg_ros.backends.openvino", raising=False)
    found = {finding.name: finding for finding in inference.check_backends()}
    assert found["openvino"].state == ABSENT and "anomseg_ros[openvino]" in found["openvino"].text
    assert found["onnxruntime"].state == OK


def test_extras_are_read_from_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy<3", "nowhere-to-be-found>=1", 'PyYAML; extra == "one"', "absent-library<2,>=1; extra == 'two'"]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    found = {finding.name: finding for finding in packages.check_packages()}
    assert found["libraries"].state == PROBLEM and "nowhere-to-be-found" in found["libraries"].text
    assert found["one"].state == OK
    assert found["two"].state == ABSENT and found["two"].remedy == "pip install 'anomseg_ros[two]'"


def test_library_without_metadata_counts_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)  # as Ubuntu's packages
    assert states(list(packages.check_packages()))["libraries"] == OK


def test_without_ros_only_the_node_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rclpy", None)
    monkeypatch.delitem(sys.modules, "anomseg_ros.node.self_test", raising=False)
    (finding,) = ros.check_ros()
    assert finding.state == ABSENT and "pip install 'anomseg_ros[ros]'" in finding.remedy


def test_small_shared_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ros, "SHARED_MEMORY", str(tmp_path / "absent"))
    finding = next(iter(ros.check_ros()))
    assert finding.state == PROBLEM and finding.text.startswith("0 MiB free") and "--shm-size" in finding.remedy


@pytest.mark.slow
def test_topics_of_images_are_listed() -> None:
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    try:
        node = rclpy.create_node("driver", context=context)
        assert "/front/image" not in image_topics(0.5)
        node.create_publisher(Image, "/front/image", 1)
        node.create_subscription(Image, "/nobody/publishes", print, 1)
        found = next(filter(None, (image_topics() for _ in range(5))))  # discovery takes longer on a busy machine
        assert "/front/image" in found and "/nobody/publishes" not in found
    finally:
        rclpy.shutdown(context=context)


def test_cameras_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cameras, "DEVICES", tmp_path)
    monkeypatch.setattr(cameras, "NAMES", tmp_path / "names")
    assert states(list(cameras.check_cameras())) == {"V4L2": ABSENT}
    for number in (2, 10):
        (tmp_path / f"video{number}").touch()
    (tmp_path / "names" / "video2").mkdir(parents=True)
    (tmp_path / "names" / "video2" / "name").write_text("HD Webcam\n")
    first, second = cameras.check_cameras()
    assert (first.name, first.text, first.state) == ("video2", "HD Webcam, readable", OK)
    assert (second.name, second.text) == ("video10", "video10, readable")


def test_camera_that_this_user_may_not_open_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are closed to other users
        Path(folder).chmod(0o755)
        (Path(folder) / "video0").touch(mode=0)
        monkeypatch.setattr(cameras, "DEVICES", Path(folder))
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may open everything
        try:
            (finding,) = cameras.check_cameras()
        finally:
            os.seteuid(user)
    assert finding.state == PROBLEM and "usermod -aG video" in finding.remedy
