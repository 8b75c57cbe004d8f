"""Tables of names: each value is a "module:Class" that is imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from anomseg_ros.errors import ConfigError, unknown_name


def class_of(kind: str, name: str, table: Mapping[str, str]) -> Any:
    """Return the class of a table's entry; ConfigError for an unknown name, closest names first."""
    if name not in table:
        raise ConfigError(unknown_name(kind, name, table))
    module, _, class_name = table[name].partition(":")
    return getattr(importlib.import_module(module), class_name)
