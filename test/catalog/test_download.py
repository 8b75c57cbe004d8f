"""Downloads from a local server that simulates all kinds of faults."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from file_server import Fault, FileServer, Handler, begin, cut_after, drip, running, serve, silence, status

from anomseg_ros.catalog.download import download
from anomseg_ros.catalog.http import DownloadError, HttpRules, check_url

CONTENT = bytes(range(256)) * 1200  # 307,200 bytes: several reads
QUICK = HttpRules(timeout_s=0.4, attempts=3, backoff_s=0.01, slowest_bytes_per_s=1000)


@pytest.fixture()
def server() -> Iterator[FileServer]:
    with running(FileServer(CONTENT)) as state:
        yield state


@pytest.fixture()
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "weights.pth"


def require_content(path: Path) -> None:
    if path.read_bytes() != CONTENT:
        raise DownloadError("another file")


def download_from(server: FileServer, target: Path, **options: Any) -> None:
    download(server.url(), target, require_content, **{"rules": QUICK, **options})


def part_of(target: Path) -> Path:
    return target.with_name("weights.pth.part")


def download_error(server: FileServer, target: Path, **options: Any) -> str:
    with pytest.raises(DownloadError) as raised:
        download_from(server, target, **options)
    assert not target.exists()
    return str(raised.value)


def assert_done(target: Path) -> None:
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["weights.pth"]


def test_file_is_downloaded_with_progress(server: FileServer, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download_from(server, target, progress=lambda _, done, total: seen.append((done, total)))
    assert_done(target)
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) > 3


def test_interrupted_connection_is_resumed(server: FileServer, target: Path) -> None:
    server.faults = [cut_after(1000), cut_after(100_000)]
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked() == [None, "bytes=1000-", "bytes=101000-"]
    assert server.requests[2][1]["If-Range"] == '"v1"'


def test_later_run_resumes_a_partial_file(server: FileServer, target: Path) -> None:
    server.faults = [cut_after(70_000), status(503), status(503)]
    assert "HTTP 503" in download_error(server, target) and part_of(target).stat().st_size == 70_000
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked()[-1] == "bytes=70000-"


def test_date_is_used_to_resume_without_an_etag(server: FileServer, target: Path) -> None:
    server.etag, server.last_modified = 'W/"weak"', "Mon, 01 Jun 2026 00:00:00 GMT"
    server.faults = [cut_after(1000)]
    download_from(server, target)
    assert_done(target)
    assert server.requests[1][1]["If-Range"] == server.last_modified


@pytest.mark.parametrize("weak", ['W/"weak"', None])
def test_download_restarts_without_etag_and_date(server: FileServer, target: Path, weak: str | None) -> None:
    server.etag = weak
    server.faults = [cut_after(1000)]
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked() == [None, None]


def test_changed_file_is_not_mixed_with_the_old_part(server: FileServer, target: Path) -> None:
    def replace_and_serve(handler: Handler, state: FileServer) -> None:
        state.content, state.etag = CONTENT, '"v2"'
        serve(handler, state)

    server.content = b"old" * 100_000
    server.faults = [cut_after(5000), replace_and_serve]
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked() == [None, "bytes=5000-"]


def test_download_restarts_if_the_server_ignores_if_range(server: FileServer, target: Path) -> None:
    def other_version(handler: Handler, state: FileServer) -> None:
        body = CONTENT[5000:]
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 5000-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("ETag", '"v2"')
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body)

    server.faults = [cut_after(5000), other_version]
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked() == [None, "bytes=5000-", None]


def test_download_restarts_if_the_server_has_no_ranges(server: FileServer, target: Path) -> None:
    server.ranges = False
    server.faults = [cut_after(5000)]
    download_from(server, target)
    assert_done(target)


def test_complete_part_file_is_only_renamed(server: FileServer, target: Path) -> None:
    def no_check(path: Path) -> None:
        raise KeyboardInterrupt  # as if interrupted after the last byte

    with pytest.raises(KeyboardInterrupt):
        download(server.url(), target, no_check, rules=QUICK)
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked() == [None, f"bytes={len(CONTENT)}-"]


def test_part_file_of_another_address_is_discarded(server: FileServer, target: Path) -> None:
    server.faults = [cut_after(9000), status(404)]
    download_error(server, target)
    download(server.url("/other.pth"), target, require_content, rules=QUICK)
    assert_done(target)
    assert server.ranges_asked()[-1] is None


def test_part_file_longer_than_the_file_is_discarded(server: FileServer, target: Path) -> None:
    server.faults = [cut_after(9000), status(404)]
    download_error(server, target)
    with part_of(target).open("ab") as stream:
        stream.write(bytes(len(CONTENT)))
    download_from(server, target)
    assert_done(target)


def test_part_file_of_unknown_origin_is_discarded(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * 500)
    part_of(target).with_name("weights.pth.part.json").write_text("{")
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked() == [None]


def test_wrong_content_is_removed(server: FileServer, target: Path) -> None:
    server.content = b"y" * 1000
    assert download_error(server, target) == "another file"
    assert list(target.parent.iterdir()) == []


def test_missing_file_is_requested_only_once(server: FileServer, target: Path) -> None:
    server.faults = [status(404)]
    assert "HTTP 404 Not Found: the file was moved or removed" in download_error(server, target)
    assert len(server.requests) == 1


def test_server_errors_are_retried(server: FileServer, target: Path) -> None:
    server.faults = [status(500), status(429, Retry_After="0")]
    download_from(server, target)
    assert_done(target)


def test_download_gives_up_after_all_attempts(server: FileServer, target: Path) -> None:
    server.faults = [status(500)] * 9
    assert "gave up after 3 attempts" in download_error(server, target)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/weights.pth", "redirection refused"),  # a loop
        ("file:///etc/hostname", "redirection refused"),
        ("ftp://127.0.0.1/weights.pth", "of another scheme: refused"),
        ("https://127.0.0.1/weights.pth", "of another scheme: refused"),
        ("http://192.0.2.1/weights.pth", "expected an address that begins with https://"),
    ],
)
def test_unsafe_redirections_are_refused(server: FileServer, target: Path, location: str, message: str) -> None:
    server.faults = [status(302, Location=location)] * 20
    assert message in download_error(server, target)
    assert len(server.requests) < 10


def test_redirection_of_the_same_scheme_is_followed_with_the_range(server: FileServer, target: Path) -> None:
    onwards = status(302, Location="/elsewhere")
    server.faults = [onwards, cut_after(3000), onwards]
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked()[-1] == "bytes=3000-" and server.requests[-1][0] == "/elsewhere"


@pytest.mark.parametrize("fault", [silence(20.0), drip(20.0)])
def test_slow_server_is_disconnected_and_retried(server: FileServer, target: Path, fault: Fault) -> None:
    server.faults = [fault]
    started = time.monotonic()
    download_from(server, target)
    assert time.monotonic() - started < 5
    assert_done(target)
    assert len(server.requests) == 2


def test_wrong_length_is_refused(server: FileServer, target: Path) -> None:
    def short(handler: Handler, state: FileServer) -> None:
        handler.wfile.write(begin(handler, state, declared=1000)[:1000])

    server.faults = [short]
    assert download_error(server, target) == "another file"
    server.faults = [short]
    assert f"expected {len(CONTENT)} bytes, the server has 1000" in download_error(
        server, target, size_bytes=len(CONTENT)
    )


def test_file_without_a_length_needs_a_digest(server: FileServer, target: Path) -> None:
    def lengthless(handler: Handler, state: FileServer) -> None:
        handler.wfile.write(begin(handler, state, declared=None))

    server.faults = [lengthless]
    assert "does not say how long the file is" in download_error(server, target)
    server.faults = [lengthless]
    download_from(server, target, checkable=True)
    assert_done(target)


def test_file_above_the_size_limit_is_refused(server: FileServer, target: Path) -> None:
    def lengthless(handler: Handler, state: FileServer) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(begin(handler, state, declared=None))

    assert f"{len(CONTENT)} bytes are more than the limit of 1000" in download_error(server, target, limit_bytes=1000)
    server.faults = [lengthless]
    assert "more than the limit of 1000 bytes" in download_error(server, target, limit_bytes=1000, checkable=True)
    assert list(target.parent.iterdir()) == []


def test_compressed_responses_are_refused(server: FileServer, target: Path) -> None:
    server.faults = [status(200, Content_Encoding="gzip")]
    assert "packed as 'gzip'" in download_error(server, target)


def test_symbolic_link_as_part_file_is_refused(server: FileServer, target: Path, tmp_path: Path) -> None:
    target.parent.mkdir()
    part_of(target).symlink_to(tmp_path / "elsewhere")
    assert "cannot be written" in download_error(server, target)
    assert not (tmp_path / "elsewhere").exists()


def test_concurrent_download_of_one_file_is_refused(server: FileServer, target: Path) -> None:
    from anomseg_ros.catalog.part_file import PartFile

    with PartFile(target):
        assert "being written by another fetch" in download_error(server, target)


def test_unwritable_folder_is_refused_before_the_request(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "choose another folder with --output" in download_error(server, tmp_path / "file" / "weights.pth")
    assert server.requests == []


@pytest.mark.parametrize(
    "url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "example.org", "https:///x"]
)
def test_unsafe_addresses_are_refused(url: str) -> None:
    with pytest.raises(DownloadError, match="is refused: expected an address that begins with https://"):
        check_url(url, HttpRules())


def test_safe_addresses_are_accepted() -> None:
    for url in ("https://example.org/x", "http://localhost/x", "http://[::1]:80/x", "http://127.9.9.9/x"):
        check_url(url, HttpRules())
    check_url("http://example.org/x", HttpRules(allow_http=True))


def test_proxy_of_the_environment_is_used(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.address)
    url = "http://models.example/weights.pth"
    download(url, target, require_content, rules=HttpRules(allow_http=True, timeout_s=1.0, attempts=1))
    assert_done(target)
    assert server.requests[0][0] == url
    # Addresses of this machine bypass the proxy.
    download_from(server, target.with_name("again"))
    assert server.requests[1][0] == "/weights.pth"


FULL_DISK = """
import resource, sys
from pathlib import Path
from anomseg_ros.catalog.download import download
from anomseg_ros.catalog.http import DownloadError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    download(sys.argv[1], Path(sys.argv[2]), lambda path: None)
except DownloadError as error:
    sys.exit(str(error))
"""


def test_full_disk_keeps_the_partial_file(server: FileServer, target: Path) -> None:
    words = [sys.executable, "-c", FULL_DISK, server.url(), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "100000 bytes are kept in" in done.stderr and "make room and run the same command again" in done.stderr
    assert part_of(target).read_bytes() == CONTENT[:100_000]
    download_from(server, target)
    assert_done(target)
    assert server.ranges_asked() == [None, "bytes=100000-"]


def test_missing_disk_space_is_refused_in_advance(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert f"has room for 1000 bytes, {len(CONTENT)} are needed" in download_error(server, target)
