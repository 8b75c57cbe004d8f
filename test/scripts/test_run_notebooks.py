"""The notebooks: committed outputs are of a run from the top, and a new run gives outputs of the same kind."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import anomseg_ros

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 300_000


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def form(notebook: dict[str, Any]) -> list[list[tuple[str, tuple[str, ...]]]]:
    """Return the kinds of the outputs of each code cell."""
    return [
        [(output["output_type"], tuple(sorted(output.get("data", ())))) for output in cell["outputs"]]
        for cell in code_cells(notebook)
    ]


def test_both_notebooks_are_there_and_linked() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["look_at_your_drive", "measure_a_checkpoint"]
    text = (ROOT / "docs" / "python.md").read_text()
    assert all(f"(../notebooks/{path.name})" in text for path in NOTEBOOKS)
    assert "recursive-include notebooks *.ipynb" in (ROOT / "MANIFEST.in").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_of_one_run_from_the_top(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES
    notebook = json.loads(path.read_text())
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] in ("stream", "display_data", "execute_result") for output in outputs)
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    assert kinds.count("image/jpeg") >= 2 and kinds.count("image/svg+xml") == 1
    printed = " ".join("".join(output.get("text", ())) for output in outputs)
    assert not re.search(r"/(work|tmp|home|root)\b", printed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_the_public_interface_is_used_and_one_s_own_data_has_a_marked_cell(path: Path) -> None:
    notebook = json.loads(path.read_text())
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anomseg_ros"):
                assert node.module == "anomseg_ros" and {name.name for name in node.names} <= set(anomseg_ros.__all__)
            assert not (isinstance(node, ast.Import) and any("anomseg" in name.name for name in node.names))
    text = ["".join(cell["source"]) for cell in notebook["cells"]]
    (marked,) = (place for place, words in enumerate(text) if "**Change this cell**" in words)
    assert notebook["cells"][marked + 1]["cell_type"] == "code" and " = Path(" in text[marked + 1]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_run_gives_outputs_of_the_committed_form(path: Path) -> None:
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install '.[notebook]'")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel: pip install '.[notebook]'")
    if path.stem == "measure_a_checkpoint":
        pytest.importorskip("torch", reason="needs torch: pip install '.[offline]'")
    import run_notebooks

    assert form(run_notebooks.executed(path.stem)) == form(json.loads(path.read_text()))
