"""The cache of engines: what is found, why something is not, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from anomseg_ros.backends import engine_cache
from anomseg_ros.backends.engine_cache import (
    FACTS_FILE,
    PLAN_FILE,
    EngineCache,
    EngineKey,
    Found,
    Miss,
    default_root,
)
from anomseg_ros.errors import BackendError

KEY = EngineKey(
    program_sha256="ab" * 32,
    outputs=("labels", "void"),
    library="tensorrt",
    version="10.3.0",
    gpu_name="Orin",
    compute_capability="8.7",
    multiprocessors=16,
    integrated=True,
    architecture="aarch64",
)
CHANGED: dict[str, Any] = {
    "program_sha256": "cd" * 32,
    "outputs": ("labels", "msp"),
    "library": "tensorrt_rtx",
    "version": "10.3.1",
    "gpu_name": "Orin NX",
    "compute_capability": "8.9",
    "multiprocessors": 8,
    "integrated": False,
    "architecture": "x86_64",
    "dla_core": 0,
    "tf32": True,
    "workspace_bytes": 1 << 30,
    "backend_version": KEY.backend_version + 1,
}
PLAN = b"a plan" * 1000
CHECKED = {"check": {"noise": {"labels": 1.0}}}

TAKE_AND_WAIT = """
import sys, time
from pathlib import Path
from test_engine_cache import EngineCache, KEY
with EngineCache(Path(sys.argv[1])).lock(KEY):
    print("taken", flush=True)
    time.sleep(60)
"""
KILLED_WHILE_STORING = """
import os, signal, sys
from pathlib import Path
from anomseg_ros.backends import engine_cache
from test_engine_cache import CHECKED, KEY, PLAN
engine_cache.put_in_place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
engine_cache.EngineCache(Path(sys.argv[1])).store(KEY, PLAN, CHECKED)
"""


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    cache = EngineCache(tmp_path / "cache")
    cache.store(KEY, PLAN, {"build_s": 12.5, **CHECKED})
    return cache


def entry(cache: EngineCache) -> Path:
    return cache.root / KEY.digest


def reason(cache: EngineCache, key: EngineKey = KEY) -> str:
    found = cache.find(key)
    assert isinstance(found, Miss)
    return found.reason


def python(code: str, folder: Path) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parent), str(Path(engine_cache.__file__).parents[2])]
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def test_an_engine_is_found_with_its_facts(cache: EngineCache) -> None:
    found = cache.find(KEY)
    assert isinstance(found, Found)
    assert found.plan == PLAN == found.plan_path.read_bytes() and found.plan_path == entry(cache) / PLAN_FILE
    assert found.facts["build_s"] == 12.5 and found.facts["key"]["gpu_name"] == "Orin"
    assert sorted(path.name for path in cache.root.iterdir()) == [KEY.digest]


def test_every_field_of_the_key_has_a_test() -> None:
    assert CHANGED.keys() == {field.name for field in fields(EngineKey)}


@pytest.mark.parametrize("name", CHANGED)
def test_an_engine_that_differs_in_anything_is_not_found_and_the_reason_names_it(cache: EngineCache, name: str) -> None:
    cache.store(replace(KEY, program_sha256="ef" * 32, gpu_name="A2", version="11.0", tf32=True), PLAN, CHECKED)
    changed = replace(KEY, **{name: CHANGED[name]})
    assert changed.digest != KEY.digest
    text = reason(cache, changed)
    assert text.startswith(f"the nearest engine, {KEY.digest[:12]}, differs: {name} is ") and text.count(";") == 0


def test_the_reason_is_readable(cache: EngineCache) -> None:
    text = reason(cache, replace(KEY, program_sha256="cd" * 32, outputs=("labels",)))
    assert text.endswith(
        "differs: program_sha256 is cdcdcdcdcdcd…, there abababababab…; outputs is labels, there labels,void"
    )


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_cache_has_no_engine_yet(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "new").mkdir(0o700)
    assert reason(EngineCache(tmp_path / "new")) == f"there is no engine yet in {tmp_path / 'new'}"
    assert (tmp_path / "new").exists() == exists


def test_fields_that_may_differ(cache: EngineCache) -> None:
    asked = replace(KEY, workspace_bytes=5, dla_core=0)
    assert isinstance(cache.find(asked, any_of=("workspace_bytes", "dla_core")), Found)
    assert isinstance(cache.find(asked, any_of=("workspace_bytes",)), Miss)
    assert isinstance(cache.find(asked), Miss)


def test_a_stored_engine_replaces_the_one_of_its_key(cache: EngineCache) -> None:
    cache.store(KEY, b"another", CHECKED)
    found = cache.find(KEY)
    assert isinstance(found, Found) and found.plan == b"another"


def test_discarded(cache: EngineCache) -> None:
    cache.discard(KEY)
    cache.discard(KEY)
    assert "no engine yet" in reason(cache) and list(cache.root.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (PLAN_FILE, PLAN[:-1]),
        (PLAN_FILE, b""),
        (FACTS_FILE, b'{"key": '),
        (FACTS_FILE, b"[]"),
        (FACTS_FILE, b"\xff\xfe"),
        (FACTS_FILE, json.dumps({"key": replace(KEY, gpu_name="B").fields}).encode()),
        (FACTS_FILE, json.dumps({"key": KEY.fields}).encode()),
    ],
)
def test_a_damaged_engine_is_a_miss_and_can_be_replaced(cache: EngineCache, file: str, content: bytes) -> None:
    (entry(cache) / file).write_bytes(content)
    assert reason(cache).startswith(f"the engine {KEY.digest[:12]} is damaged: ")
    assert isinstance(cache.find(replace(KEY, tf32=True)), Miss)
    cache.store(KEY, PLAN, CHECKED)
    assert isinstance(cache.find(KEY), Found)


@pytest.mark.parametrize("facts", [{}, {"check": {}}, {"check": "yes"}])
def test_an_engine_that_was_never_checked_is_a_miss(cache: EngineCache, facts: dict[str, Any]) -> None:
    cache.store(KEY, PLAN, facts)
    assert "was never compared with its bundle" in reason(cache)


def test_a_damaged_engine_does_not_hide_good_ones(cache: EngineCache) -> None:
    keys = [replace(KEY, workspace_bytes=limit) for limit in range(4)]
    for key in keys:
        cache.store(key, PLAN, CHECKED)
    (entry(cache) / PLAN_FILE).write_bytes(b"")
    for key in keys:
        assert isinstance(cache.find(KEY, any_of=("workspace_bytes",)), Found)
        (cache.root / key.digest / PLAN_FILE).write_bytes(b"")
    missed = cache.find(KEY, any_of=("workspace_bytes",))
    assert isinstance(missed, Miss) and missed.reason.startswith(f"the engine {KEY.digest[:12]} is damaged")


@pytest.mark.parametrize("file", [PLAN_FILE, FACTS_FILE])
def test_an_engine_without_a_file_is_a_miss(cache: EngineCache, file: str) -> None:
    (entry(cache) / file).unlink()
    assert "damaged" in reason(cache)


@pytest.mark.parametrize("part", ["", KEY.digest, f"{KEY.digest}/{PLAN_FILE}", f"{KEY.digest}/{FACTS_FILE}"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_can_write_is_refused(cache: EngineCache, part: str, mode: int) -> None:
    path = cache.root / part
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(BackendError, match=r"can be written by others .*an engine is a program; .*chmod go-w"):
        cache.find(KEY)


@pytest.mark.parametrize("part", ["", KEY.digest, f"{KEY.digest}/{PLAN_FILE}"])
def test_what_belongs_to_another_user_is_refused(
    cache: EngineCache, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache.root / part
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(BackendError, match=r"belongs to user \d+, not to \d+: an engine is a program"):
        cache.find(KEY)


def test_nothing_is_stored_where_others_can_write(cache: EngineCache) -> None:
    cache.root.chmod(0o777)
    for write in (
        lambda: cache.store(KEY, PLAN, CHECKED),
        lambda: cache.write_timings(KEY, b"x"),
        lambda: cache.discard(KEY),
    ):
        with pytest.raises(BackendError, match="can be written by others"):
            write()


def test_links_are_refused(cache: EngineCache, tmp_path: Path) -> None:
    (entry(cache) / PLAN_FILE).rename(tmp_path / "elsewhere")
    (entry(cache) / PLAN_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="is a link"):
        cache.find(KEY)
    entry(cache).rename(tmp_path / "folder")
    entry(cache).symlink_to(tmp_path / "folder")
    with pytest.raises(BackendError, match="is a link"):
        cache.find(KEY)


def test_the_folder_of_the_cache_may_be_a_link_to_another_disk(cache: EngineCache, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache.root)
    assert isinstance(EngineCache(tmp_path / "link").find(KEY), Found)


def test_files_are_the_users_own_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        cache = EngineCache(tmp_path / "a" / "b")
        path = cache.store(KEY, PLAN, CHECKED)
        cache.write_timings(KEY, b"timings")
    finally:
        os.umask(before)
    for made in (cache.root, path.parent, path, path.with_name(FACTS_FILE), cache.timings_path(KEY)):
        assert made.stat().st_mode & 0o077 == 0
    assert isinstance(cache.find(KEY), Found)


def test_timings_belong_to_a_version_and_a_kind_of_gpu(cache: EngineCache) -> None:
    cache.write_timings(KEY, b"first")
    cache.write_timings(KEY, b"timings")
    assert cache.read_timings(replace(KEY, outputs=("labels",))) == b"timings"
    for name in ("version", "gpu_name", "compute_capability", "multiprocessors", "library"):
        assert cache.read_timings(replace(KEY, **{name: CHANGED[name]})) == b""
    cache.timings_path(KEY).chmod(0o666)
    with pytest.raises(BackendError, match="can be written by others"):
        cache.read_timings(KEY)


def test_one_process_builds_at_a_time(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = python(TAKE_AND_WAIT, cache.root)
    assert holder.stdout is not None and holder.stdout.readline() == "taken\n"
    refused = pytest.raises(BackendError, match=r"another process has been building .* for more than 0.3 s")
    with refused, cache.lock(replace(KEY, outputs=("labels",)), wait_s=0.3):
        pass
    with cache.lock(replace(KEY, gpu_name="another"), wait_s=0.3):
        pass
    monkeypatch.setattr(engine_cache, "REPORT_S", 0.1)
    told: list[str] = []

    def ends_the_wait(what: str, done: int, total: int | None) -> None:
        told.append(f"{what}: {done} of {total}")
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cache.lock(KEY, 60, ends_the_wait):
        pass
    assert told == ["waiting for another process that builds an engine, s: 0 of 60"] * 2
    holder.kill()
    holder.wait()
    started = time.monotonic()
    with cache.lock(KEY, wait_s=30):  # a killed process holds nothing
        assert time.monotonic() - started < 10


def test_a_killed_writer_leaves_nothing(cache: EngineCache, tmp_path: Path) -> None:
    other = EngineCache(tmp_path / "other")
    assert python(KILLED_WHILE_STORING, other.root).wait() == -signal.SIGKILL
    assert "no engine yet" in reason(other)
    other.store(replace(KEY, tf32=True), PLAN, CHECKED)
    assert [path.name for path in other.root.iterdir()] == [replace(KEY, tf32=True).digest]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"cannot write to the cache of engines '.*file/below'"):
        EngineCache(tmp_path / "file" / "below").store(KEY, PLAN, CHECKED)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, expected in (("/x", "/x"), ("relative", f"{tmp_path}/.cache"), ("", f"{tmp_path}/.cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_root() == Path(expected, "anomseg_ros", "tensorrt")
