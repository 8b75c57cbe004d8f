"""The installed package: machine, libraries, and which extras are complete."""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata

from anomseg_ros import __version__
from anomseg_ros.doctor.finding import ABSENT, OK, PROBLEM, Finding
from anomseg_ros.evaluation.machine import describe_machine

DISTRIBUTION = "anomseg_ros"
MODULES = {"Jinja2": "jinja2", "Pillow": "PIL", "PyYAML": "yaml", "opencv-python-headless": "cv2"}
"""Library -> its module, where the two differ: Ubuntu's packages have other distribution names, or none."""
SKIPPED_EXTRAS = {"dev", "ros"}
"""dev is for tests; ROS has an area of its own."""


def check_packages() -> Iterator[Finding]:
    """Yield the machine, the required libraries, and each extra."""
    machine = describe_machine()
    yield Finding(
        "machine",
        OK,
        f"anomseg_ros {__version__}, Python {machine['python']}, {machine['system']} {machine['architecture']}, "
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB",
    )
    libraries = _libraries_by_extra()
    missing = [name for name in libraries.pop("", []) if not _is_installed(name)]
    if missing:
        yield Finding("libraries", PROBLEM, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Finding("libraries", OK, "all that detection needs are installed")
    for extra, names in sorted(libraries.items()):
        absent = [name for name in names if not _is_installed(name)]
        if extra in SKIPPED_EXTRAS:
            continue
        if absent:
            yield Finding(extra, ABSENT, f"missing: {', '.join(absent)}", f"pip install 'anomseg_ros[{extra}]'")
        else:
            yield Finding(extra, OK, f"installed: {', '.join(names)}")


def _libraries_by_extra() -> dict[str, list[str]]:
    """Return extra -> its libraries, as the package's metadata has them; the required ones are under ""."""
    found: dict[str, list[str]] = defaultdict(list)
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from the source tree
        requirements = []
    for line in requirements:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if name:
            found[extra[1] if extra else ""].append(name[0])
    return found


def _is_installed(library: str) -> bool:
    try:
        metadata.version(library)
    except metadata.PackageNotFoundError:
        return importlib.util.find_spec(MODULES.get(library, library.replace("-", "_"))) is not None
    return True
