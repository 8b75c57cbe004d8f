"""Compression recipes: the shipped ones are read, and fine-tune by configurations that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.commands.compress import shipped_recipes
from anomseg_ros.commands.train import shipped_configs
from anomseg_ros.compression.recipe import QuantizeStep, load_recipe
from anomseg_ros.errors import ConfigError
from anomseg_ros.training.config import load_config


def test_recipes_are_shipped() -> None:
    assert {"prune30-int8", "erfnet-camvid-prune30-int8"} <= set(shipped_recipes())


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_read(name: str) -> None:
    recipe = load_recipe(shipped_recipes()[name])
    assert recipe.name == name and recipe.prune is not None and recipe.prune.fraction == 0.3
    if recipe.fine_tune is not None:
        config = load_config(shipped_configs()[recipe.fine_tune.config], recipe.fine_tune.set)
        assert name.startswith(config.network.name) and config.run.epochs == 20


def test_a_step_without_settings_has_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nquantize:\n", encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml").quantize == QuantizeStep()


@pytest.mark.parametrize("text", ["[", "\xff", "- prune", "name: r\nprune: 0.3"])
def test_what_is_no_recipe(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "r.yaml")
