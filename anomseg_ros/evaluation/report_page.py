"""Self-contained HTML pages from the templates beside this file, with style and script inside.

Templates escape every value. A content security policy lets the page run only its own script and fetch nothing, so a
hostile bundle name does no harm even if escaping fails.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anomseg_ros.core.output_files import write_results
from anomseg_ros.evaluation.report_charts import BOX, COLORS, DASHES
from anomseg_ros.evaluation.report_style import STYLE, TEMPLATES

NOT_MEASURED = "–"
FIRST_FRAMES = 25
"""Frames of a table that are shown before a reader asks for all."""


def render(template: str, title: str, **values: Any) -> str:
    """Return the document of a template of TEMPLATES. values: may replace the report's style and script."""
    values = {"style": STYLE, "script": asset("script.js"), **values}
    page = _environment().get_template(template)
    return page.render(title=title, policy=_policy(values["script"]), **values).lstrip() + "\n"


def asset(name: str) -> str:
    """Return the text of a file beside the templates."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def write_page(path: Path, document: str) -> None:
    """Write the document, see write_results. A file name in it that is not UTF-8 is written with backslashes."""
    write_results(path, document)


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction in percent, without the sign; a dash where it was not measured."""
    return fixed(None if value is None else 100 * value, digits)


def fixed(value: float | None, digits: int) -> str:
    """Return a number with so many decimals; a dash where it was not measured."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def count(value: int) -> str:
    """Return a whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u2009")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": percent,
        "count": count,
        "fixed": fixed,
        "px": "{:.1f}".format,
        "compact_json": _compact,
    }
    made.globals |= {"first_frames": FIRST_FRAMES, "box": BOX, "colors": COLORS, "dashes": DASHES}
    return made


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    parts = ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'")
    return "; ".join((*parts, "base-uri 'none'", "form-action 'none'"))
