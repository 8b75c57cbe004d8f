"""Fixtures of the tests over real ROS 2."""

from __future__ import annotations

import pytest

from anomseg_ros.node import transport


@pytest.fixture
def no_transport_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    # setenv first, so that what the function sets is taken back as well.
    for name in (transport.PROFILE_VARIABLE, "FASTDDS_BUILTIN_TRANSPORTS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
