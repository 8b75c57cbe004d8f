"""The page of what is pasted, and that each row is a recipe that loads."""

from __future__ import annotations

from typing import Any

import outlier_losses
import pasted_frames
import pytest

from anomseg_ros.training.chain import find_config
from anomseg_ros.training.config import load_config


@pytest.mark.parametrize("name", pasted_frames.ROWS)
def test_changes_of_a_row_give_a_recipe(name: str) -> None:
    changes = [*outlier_losses.ALONE, *pasted_frames.ROWS[name], f"deploy.scores=[{','.join(pasted_frames.SCORES)}]"]
    config = load_config(find_config(outlier_losses.RECIPE), changes)
    plain = load_config(find_config(outlier_losses.RECIPE), changes[: len(outlier_losses.ALONE)])
    assert config.data.void == "outliers" and config.data.cut_paste.probability > 0
    assert ((config.data, config.augment) == (plain.data, plain.augment)) is (not pasted_frames.ROWS[name])


def test_page_has_every_row_on_both_sets() -> None:
    def found(auprc: float) -> dict[str, Any]:
        return {f"cut_paste {score}": {"auprc": auprc, "fpr95": 0.125} for score in pasted_frames.SCORES}

    rows = {name: {"miou": 0.4, "figures": found(0.5), "large": found(0.25)} for name in pasted_frames.ROWS}
    text = pasted_frames.page(rows, [6, 2])
    for name in pasted_frames.ROWS:
        assert f"| {name} | 40.0 | 50.0 / 12.5 | 50.0 / 12.5 | 25.0 / 12.5 | 25.0 / 12.5 |" in text
