"""Compression recipes: the shipped ones are valid, and their training configurations exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.compression.recipe import RECIPE_FOLDER, QuantizeStep, load_recipe
from anomseg_ros.core.resources import shipped_yaml
from anomseg_ros.errors import ConfigError
from anomseg_ros.training.chain import find_config
from anomseg_ros.training.config import load_config

RECIPES = shipped_yaml(RECIPE_FOLDER)


def test_expected_recipes_are_shipped() -> None:
    assert {"prune30-int8", "erfnet-camvid-prune30-int8"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_is_valid(name: str) -> None:
    recipe = load_recipe(RECIPES[name])
    assert recipe.name == name and recipe.prune is not None and recipe.prune.fraction == 0.3
    if recipe.fine_tune is not None:
        config = load_config(find_config(recipe.fine_tune.config), recipe.fine_tune.set)
        assert name.startswith(config.network.name) and config.run.epochs == 20


def test_step_without_settings_has_defaults(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nquantize:\n", encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml").quantize == QuantizeStep()


@pytest.mark.parametrize("text", ["[", "\xff", "- prune", "name: r\nprune: 0.3", "name: r\nquantize: {weight_bits: 6}"])
def test_invalid_recipe_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "r.yaml")
