"""Write a picture as SVG, or as a PNG that an installed browser draws."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from anomseg_ros.core.output_files import write_results
from anomseg_ros.errors import ConfigError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_TIMEOUT_S = 60.0


def check_picture(path: Path) -> None:
    """Raise ConfigError if such a picture cannot be written."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"picture {path.name!r} must end in .svg or .png")
    if path.suffix.lower() == ".png":
        _browser(path)


def write_picture(svg: str, path: Path) -> None:
    """Write a picture, .svg directly or .png by an installed Chromium. Raises ConfigError for other endings."""
    check_picture(path)
    if path.suffix.lower() == ".png":
        _screenshot(svg, path)
        return
    write_results(path, svg)


def _browser(path: Path) -> str:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ConfigError(f"{path.name!r}: .png needs one of {', '.join(BROWSERS)} installed; or give a .svg file")
    return browser


def _screenshot(svg: str, path: Path) -> None:
    browser = _browser(path)
    width, height = (svg.split(f' {name}="', 1)[1].split('"', 1)[0] for name in ("width", "height"))
    with tempfile.TemporaryDirectory(prefix="anomseg-", ignore_cleanup_errors=True) as folder:
        source, shot = Path(folder) / "picture.svg", Path(folder) / "picture.png"
        source.write_text(svg, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2"]
        flags += [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", f"--screenshot={shot}"]
        done = subprocess.run(
            [browser, *flags, source.as_uri()], capture_output=True, text=True, timeout=BROWSER_TIMEOUT_S
        )
        if not shot.is_file():
            raise ConfigError(f"{browser} wrote no picture: {done.stderr.strip()[-200:]}; give a name ending in .svg")
        write_results(path, shot.read_bytes())
