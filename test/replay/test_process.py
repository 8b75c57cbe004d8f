from __future__ import annotations

import os
import socket
import subprocess
import sys

from anomseg_ros.replay.process import free_domain_id

ASK = """
import os
os.getpid = lambda: {pid}
from anomseg_ros.replay.process import free_domain_id
print(free_domain_id())
"""


def test_two_processes_get_different_domain_ids() -> None:
    ours = free_domain_id()
    # A process that looks in the same order, as one does whose id is a hundred higher.
    asked = subprocess.run(
        [sys.executable, "-c", ASK.format(pid=os.getpid())], capture_output=True, text=True, check=True
    )
    assert 1 <= int(asked.stdout) <= 100 and int(asked.stdout) != ours
    assert free_domain_id() == ours, "a process goes on with the domain that it has"


def test_domain_id_with_port_in_use_is_not_chosen() -> None:
    ours = free_domain_id()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
        somebody.bind(("127.0.0.1", 7400 + 250 * ours + 10))
        assert free_domain_id() != ours
    assert free_domain_id() == ours
