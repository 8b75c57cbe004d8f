"""The shell of a report: one HTML page with its style and script inside, which asks nothing of any network.

A content security policy in the page lets only this module's script run and nothing be fetched, so that a bundle with a
hostile name can harm nobody even if escaping failed somewhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomseg_ros.evaluation.report_script import SCRIPT
from anomseg_ros.evaluation.report_style import STYLE

NOT_MEASURED = "–"


def page(title: str, body: str) -> str:
    """Return the complete document. `title` is text, `body` is HTML."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{text(title)}</title>",
            f"<style>{STYLE}</style></head><body>",
            f"<main>{body}</main>",
            _DIALOG,
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def write_page(path: Path, document: str) -> None:
    """Write the document beside its place, then rename, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    # newline: the script's digest is of "\n"; errors: a file name that is not UTF-8 must not lose the report.
    part.write_text(document, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(part, path)


def text(value: object) -> str:
    """Return any value as text that is safe between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction in percent, without the sign; a dash where it was not measured."""
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f}"


def count(value: int) -> str:
    """Return a whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u2009")


def scrolling(content: str, label: str) -> str:
    """Return content that may be wider than a phone in a box that scrolls by itself, by touch or keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{content}</div>'


def notes(lines: Sequence[str]) -> str:
    """Return remarks as a list, nothing without any."""
    return f'<ul class="notes">{"".join(f"<li>{text(line)}</li>" for line in lines)}</ul>' if lines else ""


def provenance(command: str, created: str, machine: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    """Return what is needed to repeat an evaluation, as a description list."""
    rows = [
        ("Command", f"<code>{text(command)}</code>" if command else NOT_MEASURED),
        ("Date", text(created) if created else NOT_MEASURED),
        ("Machine", _pairs(machine)),
        ("Versions", _pairs(versions)),
    ]
    return '<dl class="origin">' + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


def _pairs(values: Mapping[str, Any]) -> str:
    pairs = (f'<span class="pair">{text(name)} <b>{text(value)}</b></span>' for name, value in values.items())
    return " ".join(pairs) or NOT_MEASURED


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode("utf-8")).digest()).decode("ascii")
    parts = ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'")
    return "; ".join((*parts, "base-uri 'none'", "form-action 'none'"))


_DIALOG = (
    '<dialog id="viewer" aria-label="Overlay, enlarged"><form method="dialog">'
    '<button type="button" data-step="-1" aria-label="Previous frame">‹</button>'
    '<span id="viewer-caption" aria-live="polite"></span>'
    '<button type="button" data-step="1" aria-label="Next frame">›</button>'
    '<button value="close" aria-label="Close">×</button></form><img alt=""></dialog>'
)
