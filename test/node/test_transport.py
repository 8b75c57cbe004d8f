from __future__ import annotations

import os
import shutil

import pytest

from anomseg_ros.node import transport


def shared_memory_of(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=free_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_shared_memory_profile_is_set_only_when_it_fits_and_none_is_set(
    no_transport_chosen: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_memory_of(monkeypatch, 64 * 2**20)  # a container
    assert not transport.use_large_shared_memory() and transport.PROFILE_VARIABLE not in os.environ
    shared_memory_of(monkeypatch, 8 * 2**30)
    assert transport.use_large_shared_memory()
    assert os.environ[transport.PROFILE_VARIABLE].endswith("config/fastdds.xml")
    monkeypatch.setenv(transport.PROFILE_VARIABLE, "/mine.xml")
    assert not transport.use_large_shared_memory() and os.environ[transport.PROFILE_VARIABLE] == "/mine.xml"
    monkeypatch.delenv(transport.PROFILE_VARIABLE)
    monkeypatch.setenv("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
    assert not transport.use_large_shared_memory() and transport.PROFILE_VARIABLE not in os.environ
