"""Files for a vehicle's computer: the SROS 2 policy, the systemd unit and the container file."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from anomseg_ros.cli import main
from anomseg_ros.node import vision
from anomseg_ros.replay.process import NodeProcess, free_domain_id, local_environment, wait_until

ROOT = Path(__file__).resolve().parents[1]
POLICY = ROOT / "config" / "sros2" / "detector.policy.xml"
UNIT = ROOT / "config" / "systemd" / "anomseg-detector.service"
CONTAINER = ROOT / "config" / "container" / "Dockerfile"

NODE = "detector"
VISION_TOPICS = {f"/{NODE}/anomaly/detections", f"/{NODE}/label_info"}


def allowed_names(policy: ElementTree.Element, namespace: str, kind: str, right: str) -> set[str]:
    """Return the full names that the policy allows a node, for example topics with publish="ALLOW"."""
    profile = policy.find(f".//profile[@ns='{namespace}'][@node='{NODE}']")
    names = [item.text for item in profile.findall(f"./{kind}[@{right}='ALLOW']/*")]
    assert len(names) == len(set(names))
    return {name.replace("~", f"{namespace.rstrip('/')}/{NODE}") for name in names}


class SecuredGraph:
    """The topics and services of a running node, beside those that the policy allows it."""

    def __init__(self, client: Any, policy: ElementTree.Element, namespace: str = "/") -> None:
        self.client, self.namespace = client, namespace
        vision_topics = set() if vision.available() else {f"{namespace.rstrip('/')}{topic}" for topic in VISION_TOPICS}
        self.published = allowed_names(policy, namespace, "topics", "publish") - vision_topics
        self.subscribed = allowed_names(policy, namespace, "topics", "subscribe")
        self.services = allowed_names(policy, namespace, "services", "reply")
        assert not allowed_names(policy, namespace, "services", "request")

    def require_equal(self) -> None:
        """Fail if the node publishes or offers other names than allowed, or calls a service."""
        graph = self.client.node

        def used(names_and_types: Callable[[str, str], list[tuple[str, list[str]]]]) -> set[str]:
            return {name for name, _ in names_and_types(NODE, self.namespace)}

        def is_discovered() -> bool:
            """A busy machine tells of the node's endpoints one by one."""
            if (NODE, self.namespace) not in graph.get_node_names_and_namespaces():
                return False
            offered = used(graph.get_service_names_and_types_by_node)
            published = used(graph.get_publisher_names_and_types_by_node)
            return len(offered) >= len(self.services) and len(published) >= len(self.published)

        self.client.spin_until(is_discovered)
        self.client.spin_for(0.5)
        assert used(graph.get_publisher_names_and_types_by_node) == self.published
        assert used(graph.get_service_names_and_types_by_node) == self.services
        assert not graph.get_client_names_and_types_by_node(NODE, self.namespace)

    def now_subscribed(self) -> set[str]:
        """The topics to which the node subscribes now."""
        names = self.client.node.get_subscriber_names_and_types_by_node(NODE, self.namespace)
        return {name for name, _ in names}

    def is_followed(self, topic: str) -> bool:
        return bool(self.client.node.count_subscribers(topic))


@pytest.mark.slow
def test_policy_equals_the_graph_of_a_running_node(tmp_path: Path, tiny_bundle: Path) -> None:
    from ros_harness import Client

    domain = free_domain_id()
    words = ["--bundle", str(tiny_bundle), "--image-topic", "/camera/image"]
    node, client = NodeProcess(domain, tmp_path / "node.log", words), Client(domain, {})
    try:
        graph, subscribed = SecuredGraph(client, ElementTree.parse(POLICY).getroot()), set()
        for transport in ("raw", "compressed"):
            image = "/camera/image" if transport == "raw" else "/camera/image/compressed"
            assert client.spin_until(partial(graph.is_followed, image)), node.log
            graph.require_equal()
            subscribed |= graph.now_subscribed()
            if transport == "raw":
                assert client.change_state("deactivate") and client.change_state("cleanup")
                assert client.set_parameter("image_transport", "compressed").successful
                assert client.change_state("configure") and client.change_state("activate")
        assert subscribed == graph.subscribed
    finally:
        client.close()
        node.stop()


CAMERAS = """
cameras:
  - {{name: front, image_topic: /front/image_raw, bundle: {bundle}}}
  - name: rear/left
    image_topic: image_raw
    image_transport: compressed
    camera_info_topic: /calibration/left
    bundle: {bundle}
"""


@pytest.mark.slow
def test_policy_of_several_cameras_equals_their_graph(tmp_path: Path, tiny_bundle: Path) -> None:
    from ros_harness import Client

    cameras, domain = tmp_path / "cameras.yaml", free_domain_id()
    cameras.write_text(CAMERAS.format(bundle=tiny_bundle))
    assert main(["policy", "--cameras", str(cameras), "--output", str(tmp_path / "policy.xml")]) == 0
    policy = ElementTree.parse(tmp_path / "policy.xml").getroot()
    node = NodeProcess(domain, tmp_path / "node.log", ["--cameras", str(cameras)])
    client = Client(domain, {})
    try:
        for namespace, image, info in (
            ("/front", "/front/image_raw", "/front/camera_info"),
            ("/rear/left", "/rear/left/image_raw/compressed", "/calibration/left"),
        ):
            graph = SecuredGraph(client, policy, namespace)
            assert client.spin_until(partial(graph.is_followed, image)), node.log
            graph.require_equal()
            assert {image, info} <= graph.now_subscribed() <= graph.subscribed
            assert len(graph.subscribed) == 3
    finally:
        client.close()
        node.stop()


def test_shipped_policy_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy"]) == 0
    assert capsys.readouterr().out == POLICY.read_text()


def test_policy_follows_namespace_enclave_and_simulated_time(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--namespace", "robot", "--image-topic", "camera/image", "--enclave", "robot/detector", "--use-sim-time"]
    assert main(["policy", *words]) == 0
    policy = ElementTree.fromstring(capsys.readouterr().out.encode())
    assert policy.find(".//enclave").get("path") == "/robot/detector"
    subscribed = allowed_names(policy, "/robot", "topics", "subscribe")
    assert subscribed == {
        "/robot/camera/image",
        "/robot/camera/image/compressed",
        "/robot/camera/camera_info",
        "/clock",
    }


@pytest.mark.parametrize(
    ("topic", "expanded"), [("~/image", "/robot/detector/image"), ("{node}/image", "/robot/detector/image")]
)
def test_policy_expands_topics_as_the_node_does(topic: str, expanded: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "--namespace", "robot", "--image-topic", topic]) == 0
    policy = ElementTree.fromstring(capsys.readouterr().out.encode())
    assert {expanded, f"{expanded}/compressed"} < allowed_names(policy, "/robot", "topics", "subscribe")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cameras", "nothing.yaml"], "nothing.yaml: No such file"),
        (["--output", "."], "'.'"),
        (["--namespace", "front camera"], "--namespace: "),
        (["--image-topic", "/camera/image raw"], "--image-topic is "),
        (["--image-topic", ""], "--image-topic is "),
        (["--enclave", "/a b"], "--enclave: "),
    ],
)
def test_policy_error_names_the_file_or_option(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["policy", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def read_unit() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def read_container() -> dict[str, str]:
    text = CONTAINER.read_text().replace("\\\n", " ")
    return dict(re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE))


def test_systemd_unit_is_read_only_and_unprivileged() -> None:
    settings = read_unit()
    assert settings["ProtectSystem"] == "strict" and settings["CapabilityBoundingSet"] == ""
    assert settings["NoNewPrivileges"] == settings["ProtectHome"] == settings["PrivateDevices"] == "yes"
    assert settings["User"] not in ("", "root") and "ReadWritePaths" not in settings
    assert int(settings["TimeoutStopSec"]) > 5 and settings["Restart"] == "on-failure"


def test_container_has_an_unprivileged_user() -> None:
    settings = read_container()
    assert settings["USER"] == "anomseg" and settings["STOPSIGNAL"] == "SIGINT"
    extra = re.search(r"/source\[(\w+)\]", settings["RUN"])[1]
    assert f'"{extra}": [' in (ROOT / "setup.py").read_text()


def command_of_unit() -> list[str]:
    words = shlex.split(read_unit()["ExecStart"])
    assert words[0].endswith("/bin/anomseg")
    return [
        {"/etc/anomseg/detector.yaml": str(ROOT / "config" / "detector.yaml")}.get(word, word) for word in words[1:]
    ]


def command_of_container() -> list[str]:
    program, *words = ast.literal_eval(read_container()["ENTRYPOINT"])
    assert program == "anomseg"
    return [*words, *ast.literal_eval(read_container()["CMD"])]


# All mounts except /proc, /sys and /dev become read-only, and all capabilities are dropped permanently.
CONFINE = """
findmnt -rno TARGET | while read -r mount; do
    case $mount in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$mount" || exit 1;; esac
done || exit 77
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def confine(command: list[str]) -> list[str]:
    own_namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    return [*own_namespace, "sh", "-c", CONFINE, "sh", *command]


@pytest.fixture
def can_confine(tmp_path: Path) -> None:
    missing = [tool for tool in ("unshare", "findmnt", "setpriv") if shutil.which(tool) is None]
    if missing or subprocess.run(confine(["true"]), capture_output=True).returncode:
        pytest.skip(f"this machine has no {', '.join(missing) or 'rights for mount namespaces'}")
    probe = subprocess.run(confine(["touch", str(tmp_path / "file")]), capture_output=True, text=True)
    assert probe.returncode != 0 and "Read-only file system" in probe.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [command_of_unit(), command_of_container()], ids=["systemd", "container"])
def test_command_runs_unprivileged_on_a_read_only_file_system(
    can_confine: None, tmp_path: Path, words: list[str]
) -> None:
    environment = local_environment(free_domain_id()) | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "HOME": "/"}
    log = tmp_path / "node.log"
    with log.open("w") as stream:
        command = confine([sys.executable, "-m", "anomseg_ros.cli", *words])
        node = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        assert wait_until(lambda: "on onnxruntime:cpu" in log.read_text(), 40), log.read_text()
        status = Path(f"/proc/{node.pid}/status").read_text()
        assert re.search(r"^CapEff:\s0+$", status, re.MULTILINE) and re.search(
            r"^NoNewPrivs:\s1$", status, re.MULTILINE
        )
        node.send_signal(signal.SIGINT)
        assert node.wait(30) == 0, log.read_text()
        assert "error" not in log.read_text().lower()
    finally:
        node.kill()
