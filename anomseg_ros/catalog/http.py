"""One HTTP request with urllib, to allowed addresses only; failures that may pass are told from those that will not."""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO

from anomseg_ros import __version__
from anomseg_ros.errors import AnomsegError

PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(AnomsegError):
    """A file cannot be downloaded, or is not the expected one."""


class Interrupted(Exception):
    """The connection failed, and another attempt may succeed. wait_s: the wait that the server asks for, if any."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class HttpRules:
    """Patience and strictness of a download."""

    allow_http: bool = False  # whether plain http is allowed to hosts other than this machine
    timeout_s: float = 30.0
    attempts: int = 6  # number of connections in a row that bring little before giving up
    backoff_s: float = 1.0
    longest_wait_s: float = 60.0
    slowest_bytes_per_s: float = 1024.0  # a connection that is slower over `timeout_s` counts as broken


def check_url(url: str, rules: HttpRules) -> None:
    """Raise DownloadError unless `url` is https, or http to a loopback host or allowed by the rules."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname and (rules.allow_http or is_loopback(url)):
        return
    remedy = "; --allow-http takes plain http" if parts.scheme == "http" else ""
    raise DownloadError(f"{url!r} is refused: expected an address that begins with https://{remedy}")


def is_loopback(url: str) -> bool:
    """Return whether the host of `url` is this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_url(url: str, headers: Mapping[str, str], rules: HttpRules) -> http.client.HTTPResponse:
    """Return the response to a GET request, with status 200 or 206. Redirections are followed within the rules.

    Raises urllib.error.HTTPError for 416 only, Interrupted for failures that may pass, DownloadError for others.
    """
    check_url(url, rules)
    request = urllib.request.Request(url, headers={"User-Agent": f"anomseg_ros/{__version__}", **headers})
    try:
        response: http.client.HTTPResponse = _opener(url, rules).open(request, timeout=rules.timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            raise
        with error:
            raise _explained(url, error) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{url}: the server's certificate is not valid: {error.reason.verify_message}"
            ) from error
        raise Interrupted(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(str(error) or type(error).__name__) from error
    return response


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows redirections that keep the scheme."""

    max_redirections = 5

    def __init__(self, rules: HttpRules) -> None:
        self.rules = rules

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request for the new address; raise DownloadError if it must not be followed."""
        if urllib.parse.urlsplit(newurl).scheme != urllib.parse.urlsplit(req.full_url).scheme:
            raise DownloadError(f"{req.full_url} redirects to {newurl!r}, of another scheme: refused")
        check_url(newurl, self.rules)
        # The type in urllib is HTTPMessage, but it means Message.
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener(url: str, rules: HttpRules) -> urllib.request.OpenerDirector:
    # urllib's usual opener also opens file:, ftp: and data:. A proxy cannot reach this machine's loopback host.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if is_loopback(url) else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
        _Redirections(rules),
    ):
        opener.add_handler(handler)
    return opener


def _explained(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in PASSING_STATUS:
        wait = error.headers.get("Retry-After", "")
        return Interrupted(f"HTTP {error.code} {error.reason}", float(wait) if wait.isdecimal() else None)
    if 300 <= error.code < 400:
        # urllib refuses loops, too many redirections and schemes other than http, https and ftp.
        return DownloadError(f"{url}: redirection refused: {' '.join(str(error.reason).split())}")
    advice = "the file was moved or removed" if error.code in (404, 410) else "the server refuses it"
    return DownloadError(
        f"{url}: HTTP {error.code} {error.reason}: {advice}; see whether the source's page has another"
    )
