"""The page of the compared losses, and that each row is a recipe that loads."""

from __future__ import annotations

from typing import Any

import outlier_losses
import pytest

from anomseg_ros.training.chain import find_config
from anomseg_ros.training.config import load_config


@pytest.mark.parametrize("name", outlier_losses.ROWS)
def test_changes_of_a_row_give_a_recipe(name: str) -> None:
    own, scores = outlier_losses.ROWS[name]
    changes = [*outlier_losses.ALONE, *own, f"deploy.scores=[{','.join(scores)}]"]
    config = load_config(find_config(outlier_losses.RECIPE), changes)
    assert config.network.name == "mide_net" and not config.teachers
    assert ("void" in scores) == (config.data.void == "outliers")


def test_page_has_every_score_of_every_row() -> None:
    rows: dict[str, Any] = {
        name: {"miou": 0.4, "figures": {f"cut_paste {score}": {"auprc": 0.5, "fpr95": 0.125} for score in scores}}
        for name, (_, scores) in outlier_losses.ROWS.items()
    }
    text = outlier_losses.page(rows, [6, 2])
    assert "| entropy | 40.0 | `max_entropy` | 50.0 / 12.5 |" in text and "--epochs 6 2`" in text
    assert text.count(" 50.0 / 12.5 |") == sum(len(scores) for _, scores in outlier_losses.ROWS.values())
