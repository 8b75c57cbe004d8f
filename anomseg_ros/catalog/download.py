"""Download of one file: resumable, limited in size, and checked before the file gets its name."""

from __future__ import annotations

import http.client
import re
import shutil
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anomseg_ros.catalog.http import DownloadError, HttpRules, Interrupted, check_url, open_url
from anomseg_ros.catalog.part_file import PartFile, Version
from anomseg_ros.core.progress import Progress, no_progress

SIZE_LIMIT_BYTES = 512 << 20
"""Several times the largest checkpoint of the catalog; a larger file is not a checkpoint."""

_CHUNK_BYTES = 1 << 16
_WORTHWHILE_BYTES = 1 << 20
"""A connection that brings this much before it breaks does not count as a failed attempt."""


def download(
    url: str,
    target: Path,
    check: Callable[[Path], None],
    *,
    size_bytes: int | None = None,
    limit_bytes: int = SIZE_LIMIT_BYTES,
    checkable: bool = False,
    rules: HttpRules | None = None,
    progress: Progress = no_progress,
) -> None:
    """Download `url` to `target`, continuing `<target>.part` if the server can.

    Args:
        url: address of the file.
        target: path of the complete file.
        check: raises DownloadError if the complete file, given by its path, is the wrong one; it is then removed.
        size_bytes: the expected size, None if it is not known.
        limit_bytes: largest size if size_bytes is None.
        checkable: whether `check` detects a missing end; otherwise a server that gives no length is refused.
        rules: patience and strictness.
        progress: called with the received and the total bytes.

    Raises:
        DownloadError: the file cannot be downloaded. Received bytes are kept unless they are wrong, also after a
            KeyboardInterrupt.
    """
    rules = rules or HttpRules()
    check_url(url, rules)
    limit = limit_bytes if size_bytes is None else size_bytes
    with PartFile(target) as part:
        _Transfer(part, url, size_bytes, limit, checkable, rules, progress).run()
        try:
            check(part.path)
        except DownloadError:
            part.discard()
            raise
        part.finish()


class _Complete(Exception):
    """The part file is complete already."""


@dataclass(frozen=True)
class _Transfer:
    """The download of a part file; for the fields see `download`."""

    part: PartFile
    url: str
    size_bytes: int | None
    limit_bytes: int
    checkable: bool
    rules: HttpRules
    progress: Progress

    def run(self) -> None:
        """Fill the part file; connect again until the attempts are used up."""
        part, rules, failures = self.part, self.rules, 0
        while True:
            before = part.size
            try:
                with self._request() as response:
                    total = self._start(response)
                    self._check_size(total)
                    self._copy(response, total)
                return
            except _Complete:
                return
            except Interrupted as error:
                failures = 1 if part.size - before >= _WORTHWHILE_BYTES else failures + 1
                if failures >= rules.attempts:
                    rest = f"{part.size} bytes are kept in {part.path}" if part.size else "nothing was received"
                    raise DownloadError(
                        f"{self.url}: {error}; gave up after {failures} attempts, {rest}; run the same command again "
                        "later"
                    ) from error
                wait_s = rules.backoff_s * 2 ** (failures - 1) if error.wait_s is None else error.wait_s
                time.sleep(min(wait_s, rules.longest_wait_s))

    def _request(self) -> http.client.HTTPResponse:
        """Return the response with the rest of the file, or with all of it if it cannot be continued."""
        part, headers = self.part, {"Accept-Encoding": "identity"}
        version = part.version
        if part.size and version and version.url == self.url and version.validator:
            # If-Range: the rest if the file is the same, else all of it.
            headers |= {"Range": f"bytes={part.size}-", "If-Range": version.validator}
        try:
            return open_url(self.url, headers, self.rules)
        except urllib.error.HTTPError as error:  # 416: no bytes in this range
            with error:
                whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if "Range" in headers and whole and int(whole[1]) == part.size:
                raise _Complete from error
            part.restart(Version(self.url))
            raise Interrupted("the server cannot continue the file; starting over") from error

    def _start(self, response: http.client.HTTPResponse) -> int | None:
        """Empty the part file unless the response continues it; return the size of the whole file, None if unknown."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise DownloadError(f"{self.url}: the server sends it packed as {encoding!r}: refused")
        etag = response.headers.get("ETag")
        # Different files may have the same weak ETag, RFC 9110, section 13.1.5.
        strong = etag if etag and not etag.startswith("W/") else None
        version = Version(self.url, strong, response.headers.get("Last-Modified"), response.length)
        if response.status != 206:
            self.part.restart(version)
            return version.total_bytes
        before = self.part.version
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if before and place and int(place[1]) == self.part.size:
            same_tag = version.etag is None or version.etag == before.etag
            if same_tag and before.total_bytes in (None, int(place[2])):
                return int(place[2])
        self.part.restart(Version(self.url))
        raise Interrupted("the server continues another file; starting over")

    def _check_size(self, total: int | None) -> None:
        part, url = self.part, self.url
        if total is None:
            if self.size_bytes is None and not self.checkable:
                raise DownloadError(
                    f"{url}: the server does not say how long the file is, so it cannot be known complete"
                )
            return
        if self.size_bytes is not None and total != self.size_bytes:
            part.discard()
            raise DownloadError(f"{url}: expected {self.size_bytes} bytes, the server has {total}: it is another file")
        if total > self.limit_bytes:
            part.discard()
            raise DownloadError(
                f"{url}: {total} bytes are more than the limit of {self.limit_bytes}; raise it with --max-mib"
            )
        room = shutil.disk_usage(part.path.parent).free
        if total - part.size > room:
            raise DownloadError(
                f"{part.path.parent} has room for {room} bytes, {total - part.size} are needed; make room and run the "
                "same command again, or choose another folder with --output"
            )

    def _copy(self, response: http.client.HTTPResponse, total: int | None) -> None:
        """Append the body. The speed is checked because single bytes now and then would never reach a timeout."""
        part = self.part
        self.progress(part.path.stem, part.size, total)
        since, bytes_then = time.monotonic(), part.size
        while data := _read(response):
            if part.size + len(data) > self.limit_bytes:
                part.discard()
                raise DownloadError(
                    f"{self.url}: more than the limit of {self.limit_bytes} bytes; it is not the expected file"
                )
            part.append(data)
            self.progress(part.path.stem, part.size, total)
            elapsed_s = time.monotonic() - since
            if elapsed_s > self.rules.timeout_s:
                if part.size - bytes_then < self.rules.slowest_bytes_per_s * elapsed_s:
                    raise Interrupted(f"only {part.size - bytes_then} bytes in {elapsed_s:.0f} s")
                since, bytes_then = time.monotonic(), part.size
        if total is not None and part.size != total:
            raise Interrupted(f"the connection ended after {part.size} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(str(error) or type(error).__name__) from error
