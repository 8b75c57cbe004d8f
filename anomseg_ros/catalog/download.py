"""Download one file: resumable, limited in size, checked before it gets its name."""

from __future__ import annotations

import http.client
import re
import shutil
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path

from anomseg_ros.catalog.http import DownloadError, HttpRules, Interrupted, check_url, open_url
from anomseg_ros.catalog.part_file import PartFile, Version

SIZE_LIMIT_BYTES = 512 << 20
"""Several times the largest checkpoint of the catalog; a server that sends more sends something else."""

_CHUNK_BYTES = 1 << 16
_WORTHWHILE_BYTES = 1 << 20
"""A connection that brings this much before it breaks does not count as a failed attempt."""

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes that are there and the bytes there will be, None where the server does not say."""


def download(
    url: str,
    target: Path,
    check: Callable[[Path], None],
    *,
    size_bytes: int | None = None,
    limit_bytes: int = SIZE_LIMIT_BYTES,
    checkable: bool = False,
    rules: HttpRules | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Download `url` to `target`, continuing `<target>.part` where the server can.

    check: raises DownloadError if the complete file, given by its path, is not the expected one; it is then removed.
    size_bytes: the known size, if it is known. checkable: whether `check` would notice that the end is missing; where
    it would not, a server that gives no length is refused.

    Raises DownloadError; what was received is kept unless it is wrong. KeyboardInterrupt keeps it, too.
    """
    rules = rules or HttpRules()
    check_url(url, rules)
    limit = limit_bytes if size_bytes is None else size_bytes
    with PartFile(target) as part:
        _fill(part, url, size_bytes, limit, checkable, rules, progress)
        try:
            check(part.path)
        except DownloadError:
            part.discard()
            raise
        part.keep()


def _fill(
    part: PartFile,
    url: str,
    size_bytes: int | None,
    limit_bytes: int,
    checkable: bool,
    rules: HttpRules,
    progress: Progress,
) -> None:
    failures = 0
    while True:
        before = part.size
        try:
            with _ask(part, url, rules) as response:
                total = _place(part, url, response)
                _check_size(part, url, total, size_bytes, limit_bytes, checkable)
                _copy(part, url, response, total, limit_bytes, rules, progress)
            return
        except _Complete:
            return
        except Interrupted as error:
            failures = 1 if part.size - before >= _WORTHWHILE_BYTES else failures + 1
            if failures >= rules.attempts:
                kept = f"{part.size} bytes are kept in {part.path}" if part.size else "nothing was received"
                raise DownloadError(
                    f"{url}: {error}; gave up after {failures} attempts, {kept}; run the same command again later"
                ) from error
            wait_s = rules.backoff_s * 2 ** (failures - 1) if error.wait_s is None else error.wait_s
            time.sleep(min(wait_s, rules.longest_wait_s))


class _Complete(Exception):
    """The server says that there is nothing after what we have."""


def _ask(part: PartFile, url: str, rules: HttpRules) -> http.client.HTTPResponse:
    """Return the response with the rest of the file, or with all of it where it cannot be continued."""
    headers = {"Accept-Encoding": "identity"}
    version = part.version
    if part.size and version and version.url == url and version.validator:
        # If-Range: the rest if the file is still the same, else all of it.
        headers |= {"Range": f"bytes={part.size}-", "If-Range": version.validator}
    try:
        return open_url(url, headers, rules)
    except urllib.error.HTTPError as error:  # 416: nothing there to send
        with error:
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if "Range" in headers and whole and int(whole[1]) == part.size:
            raise _Complete from error
        part.restart(Version(url))
        raise Interrupted("the server cannot continue the file; starting over") from error


def _place(part: PartFile, url: str, response: http.client.HTTPResponse) -> int | None:
    """Empty the part file unless the response continues it; return the size of the whole file, None if unknown."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{url}: the server sends it packed as {response.headers['Content-Encoding']!r}: refused")
    etag = response.headers.get("ETag")
    version = Version(
        url,
        # A weak one may be the same for files that differ, RFC 9110, section 13.1.5.
        etag if etag and not etag.startswith("W/") else None,
        response.headers.get("Last-Modified"),
        response.length,
    )
    if response.status != 206:
        part.restart(version)
        return version.total_bytes
    known = part.version
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    continues = known is not None and found is not None and int(found[1]) == part.size
    same = known is not None and (version.etag is None or version.etag == known.etag)
    if not (found and continues and same) or (known and known.total_bytes not in (None, int(found[2]))):
        part.restart(Version(url))
        raise Interrupted("the server continues another file; starting over")
    return int(found[2])


def _check_size(
    part: PartFile, url: str, total: int | None, size_bytes: int | None, limit_bytes: int, checkable: bool
) -> None:
    if total is None:
        if size_bytes is None and not checkable:
            raise DownloadError(f"{url}: the server does not say how long the file is, so it cannot be known complete")
        return
    if size_bytes is not None and total != size_bytes:
        part.discard()
        raise DownloadError(f"{url}: expected {size_bytes} bytes, the server has {total}: it is another file")
    if total > limit_bytes:
        part.discard()
        raise DownloadError(f"{url}: {total} bytes are more than the limit of {limit_bytes}; raise it with --max-mib")
    room = shutil.disk_usage(part.path.parent).free
    if total - part.size > room:
        raise DownloadError(
            f"{part.path.parent} has room for {room} bytes, {total - part.size} are needed; make room and run the same "
            "command again, or choose another folder with --output"
        )


def _copy(
    part: PartFile,
    url: str,
    response: http.client.HTTPResponse,
    total: int | None,
    limit_bytes: int,
    rules: HttpRules,
    progress: Progress,
) -> None:
    """Append the body. A timeout per read is not enough: a byte now and then would keep it from ever passing."""
    progress(part.size, total)
    since, bytes_then = time.monotonic(), part.size
    while data := _read(response):
        if part.size + len(data) > limit_bytes:
            part.discard()
            raise DownloadError(f"{url}: more than the limit of {limit_bytes} bytes; it is not the expected file")
        part.append(data)
        progress(part.size, total)
        elapsed_s = time.monotonic() - since
        if elapsed_s > rules.timeout_s:
            if part.size - bytes_then < rules.slowest_bytes_per_s * elapsed_s:
                raise Interrupted(f"only {part.size - bytes_then} bytes in {elapsed_s:.0f} s")
            since, bytes_then = time.monotonic(), part.size
    if total is not None and part.size != total:
        raise Interrupted(f"the connection ended after {part.size} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(str(error) or type(error).__name__) from error
