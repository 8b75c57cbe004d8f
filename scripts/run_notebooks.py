#!/usr/bin/env python3
"""Run the notebooks and keep their outputs in them, all or those that are named.

python scripts/run_notebooks.py
python scripts/run_notebooks.py look_at_your_drive
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
TIMEOUT_S = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *notebooks()], help="notebooks (default: all)")
    for name in parser.parse_args().names or notebooks():
        nbformat.write(executed(name), FOLDER / f"{name}.ipynb")


def notebooks() -> list[str]:
    """Return the names of the notebooks."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def executed(name: str) -> Any:
    """Return a notebook after a run from the top, without times and versions. A cell's error is raised."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    # The kernel starts in the folder of the notebook, so that its relative paths hold.
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=resources).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    return notebook


def _is_progress(output: Any) -> bool:
    """Return whether an output is a library's talk on standard error, which may name files of this machine."""
    return bool(output.output_type == "stream" and re.fullmatch("stderr", output.name))


if __name__ == "__main__":
    main()
