"""Hostile YAML and JSON raise one kind of error at once, whatever the library raises."""

from __future__ import annotations

import pytest
import yaml

from anomseg_ros.core.schema import SHOWN_CHARACTERS, from_plain, shown
from anomseg_ros.core.thresholds import Threshold
from anomseg_ros.core.untrusted_text import parse_json, parse_yaml
from anomseg_ros.errors import ConfigError

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 3000, "nested too deeply"),
        ("day: 2001-99-99", "month must be in"),
        ("number: !!float x", "could not convert"),
        ("number: !!int ''", "IndexError"),
        ("day: !!timestamp x", "AttributeError"),
        ("digits: " + "9" * 5000, "ValueError"),
        ("code: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: &a {b: *a}", "refers to itself"),
        (BOMB, r"with its references it has \d{9,} values"),
        ("a: 1\n---\na: 2", "single document"),
        ("a: 1\nb:\n  c: 2\n  d: 3\n  c: 4", "begins in line 3, 'c' is given 2 times"),
    ],
)
def test_invalid_yaml_raises_yaml_error(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        parse_yaml(text)


def test_yaml_with_references_is_read() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: &d {e: 5}, f: *d}") == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
        "c": {"e": 5, "f": {"e": 5}},
    }
    assert parse_yaml("") is None


def test_invalid_json_raises_value_error() -> None:
    for text in ("[" * 100_000, "{", "9" * 5000):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_json(b'{"a": [1]}') == {"a": [1]}


def test_long_values_are_shortened_in_errors() -> None:
    assert shown("short") == "'short'" and len(shown("x" * 10_000)) < SHOWN_CHARACTERS + 50
    plain = {"value": 10**400, "source": "", "calibrated": True}
    with pytest.raises(ConfigError, match=r"value: expected float, got 1000.*… \(401 characters\): int too large"):
        from_plain(Threshold, plain, "x")
