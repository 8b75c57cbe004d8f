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
from functools import partial
from pathlib import Path

import pytest

from anomseg_ros.node import vision
from anomseg_ros.replay.process import NodeProcess, free_domain_id, local_environment, wait_until

ROOT = Path(__file__).resolve().parents[1]
POLICY = ROOT / "config" / "sros2" / "detector.policy.xml"
UNIT = ROOT / "config" / "systemd" / "anomseg-detector.service"
CONTAINER = ROOT / "config" / "container" / "Dockerfile"

NODE = "detector"
VISION_TOPICS = {f"/{NODE}/anomaly/detections", f"/{NODE}/label_info"}


def allowed_names(kind: str, right: str) -> set[str]:
    """Return the full names that the policy allows, for example topics with publish="ALLOW"."""
    profile = ElementTree.parse(POLICY).getroot().find(".//profile[@ns='/'][@node='detector']")
    names = [item.text for item in profile.findall(f"./{kind}[@{right}='ALLOW']/*")]
    assert len(names) == len(set(names))
    return {name.replace("~", f"/{NODE}") for name in names}


def test_policy_equals_the_graph_of_a_running_node(tmp_path: Path, tiny_bundle: Path) -> None:
    from ros_harness import Client

    domain = free_domain_id()
    words = ["--bundle", str(tiny_bundle), "--image-topic", "/camera/image"]
    node, client = NodeProcess(domain, tmp_path / "node.log", words), Client(domain, {})
    try:
        published, subscribed, graph = set(), set(), client.node
        allowed_topics = allowed_names("topics", "publish") - (set() if vision.available() else VISION_TOPICS)

        def is_followed(topic: str) -> bool:
            return client.node.count_subscribers(topic) > 0

        def are_discovered() -> bool:
            """A busy machine tells of the node's endpoints one by one."""
            if NODE not in graph.get_node_names():
                return False
            offered = graph.get_service_names_and_types_by_node(NODE, "/")
            topics = graph.get_publisher_names_and_types_by_node(NODE, "/")
            return len(offered) >= len(allowed_names("services", "reply")) and len(topics) >= len(allowed_topics)

        for transport in ("raw", "compressed"):
            image = "/camera/image" if transport == "raw" else "/camera/image/compressed"
            assert client.spin_until(partial(is_followed, image)), node.log
            client.spin_until(are_discovered)
            client.spin_for(0.5)
            published |= {name for name, _ in graph.get_publisher_names_and_types_by_node(NODE, "/")}
            subscribed |= {name for name, _ in graph.get_subscriber_names_and_types_by_node(NODE, "/")}
            services = {name for name, _ in graph.get_service_names_and_types_by_node(NODE, "/")}
            assert not graph.get_client_names_and_types_by_node(NODE, "/")
            if transport == "raw":
                assert client.change_state("deactivate") and client.change_state("cleanup")
                assert client.set_parameter("image_transport", "compressed").successful
                assert client.change_state("configure") and client.change_state("activate")
        assert allowed_topics == published
        assert allowed_names("topics", "subscribe") == subscribed
        assert allowed_names("services", "reply") == services
        assert not allowed_names("services", "request")
    finally:
        client.close()
        node.stop()


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
