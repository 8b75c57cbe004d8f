"""The page of the ablation of dual-stream adapters: every row and score, beside the paper's figures."""

from __future__ import annotations

from typing import Any

import dual_stream
import trained_rows


def test_page_has_every_row_with_the_papers_figure() -> None:
    found = {
        f"{name} {score}": {"auprc": 0.125, "fpr95": 0.5} for name in trained_rows.SETS for score in ("mask_msp", "rba")
    }
    row: dict[str, Any] = {"miou": 0.31, "figures": found}
    rows = {name: row for first in dual_stream.ROWS for name in (first, f"{first}-outliers")}
    text = dual_stream.page({"fine-tuned": row, **rows}, [3, 2, 1], ["run.threads=1"])
    assert "`python dual_stream.py ablation --output DIR --epochs 3 2 1 --set run.threads=1`" in text
    cells = "12.5 / 50.0 | 12.5 / 50.0 | 12.5 / 50.0"
    assert f"| dual-stream (31.0) | `mask_msp` | {cells} | 59.6 / 3.0 |" in text
    assert f"| dual-stream-outliers (31.0) | `mask_msp` | {cells} |  |" in text
    assert text.count("`rba`") == 9
