"""The page of the distilled networks, and that each row is a recipe that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import distilled_networks
import pytest

from anomseg_ros.training.chain import find_config
from anomseg_ros.training.config import load_config


@pytest.mark.parametrize("name", distilled_networks.ROWS)
def test_changes_of_a_row_give_a_recipe(name: str) -> None:
    network, epochs = distilled_networks.ROWS[name]
    changes = distilled_networks.changes_of(name, Path("erfnet.safetensors"))
    config = load_config(find_config(distilled_networks.RECIPE), changes)
    assert (config.network.name, config.run.epochs) == (network, epochs)
    assert len(config.teachers) == 1 and config.teachers[0].network == "bisenet_lite"
    assert (config.network.initial is None) is (network == "mide_net")


def test_page_has_every_score_of_every_row() -> None:
    found = {
        f"{dataset} {score}": {"auprc": 0.5, "fpr95": 0.125}
        for dataset in ("road_anomaly_21", "road_obstacle_21", "fs_static")
        for score in distilled_networks.SCORES
    }
    rows: dict[str, Any] = {
        name: {"network": network, "epochs": epochs, "miou": 0.4, "figures": found}
        for name, (network, epochs) in distilled_networks.ROWS.items()
    }
    text = distilled_networks.page(rows)
    assert "| ENet | 0.36 | 3 | 40.0 | `void` | 50.0 / 12.5 | 50.0 / 12.5 | 50.0 / 12.5 |" in text
    assert text.count("50.0 / 12.5 |") == 3 * len(distilled_networks.SCORES) * len(distilled_networks.ROWS)
