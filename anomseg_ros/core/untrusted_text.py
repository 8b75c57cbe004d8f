"""YAML and JSON of files that anybody may have written: whatever is wrong with them is one kind of error.

PyYAML and json raise more than their own errors: RecursionError for text that is nested a thousand times, ValueError,
IndexError and AttributeError for dates, numbers and tags that are none. And a thousand bytes of YAML can be a list of
10^9 elements, each a reference to another list, which is small until somebody goes through it or shows it.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import yaml

MAX_NODES = 1_000_000
"""Of a YAML document, every reference counted with all that it refers to."""


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the plain data of one YAML document. Raises yaml.YAMLError, and nothing else, for all that is wrong."""
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        _require_bounded(node)
        return reader.construct_document(node)
    except yaml.YAMLError:
        raise
    except Exception as error:
        raise yaml.YAMLError(_reason(error)) from error
    finally:
        reader.dispose()


def parse_json(text: str | bytes) -> Any:
    """Return the plain data of a JSON document. Raises ValueError, and nothing else, for all that is wrong."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(_reason(error)) from error


def _require_bounded(node: yaml.Node) -> None:
    if (size := _size(node, {})) > MAX_NODES:
        raise yaml.YAMLError(f"with its references it has {size} values, at most {MAX_NODES} are read")


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of values in a node. sizes: of the nodes that were counted; 0 while one is being counted."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise yaml.YAMLError("a value refers to itself")
        return sizes[id(node)]
    sizes[id(node)] = 0
    _refuse_duplicate_keys(node)
    children = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
    total = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(_size(child, sizes) for child in children)
    sizes[id(node)] = total
    return total


def _refuse_duplicate_keys(node: yaml.Node) -> None:
    """PyYAML would use the last value of a key that is given twice, and leave out the others in silence."""
    if not isinstance(node, yaml.MappingNode):
        return
    keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
    for (_, key), count in Counter(keys).items():
        if count > 1:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"in the mapping that begins in line {line}, {key!r} is given {count} times")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
