from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    items: tuple[Inner, ...] = ()
    table: Mapping[float, float] = field(default_factory=dict)
    note: str | None = None
    names: str | tuple[Inner, ...] = ""


PLAIN = {"name": "a", "inner": {"size": [2, 3], "rate": 2}, "items": [{"size": [1, 1]}], "table": {0.1: 5}}


def test_nested_values_are_converted() -> None:
    value = from_plain(Outer, PLAIN, "x.yaml")
    assert value == Outer("a", Inner((2, 3), 2.0), (Inner((1, 1)),), {0.1: 5.0})
    assert isinstance(value.inner.rate, float)


def test_union_field_accepts_one_value_or_a_list() -> None:
    one, several = (from_plain(Outer, {**PLAIN, "names": names}, "x") for names in ("a", [{"size": [4, 5]}]))
    assert (one.names, several.names) == ("a", (Inner((4, 5)),))
    for names, message in (([{"siz": 1}], r"x: names\[0\]: unknown key 'siz'"), (3, "x: names: expected str, got 3")):
        with pytest.raises(ConfigError, match=message):
            from_plain(Outer, {**PLAIN, "names": names}, "x")


def test_to_plain_and_from_plain_round_trip() -> None:
    value = from_plain(Outer, PLAIN, "x.yaml")
    assert from_plain(Outer, to_plain(value), "x.yaml") == value
    assert "note" not in to_plain(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "b"}, "x.yaml: unknown key 'nmae'; did you mean 'name'"),
        ({"inner": {"size": [2, 3], "rat": 1}}, "x.yaml: inner: unknown key 'rat'; did you mean 'rate'"),
        ({"inner": {}}, r"x.yaml: inner: missing key\(s\) 'size'"),
        ({"inner": {"size": [2]}}, "x.yaml: inner: size: expected 2 values"),
        ({"inner": {"size": [2, "3"]}}, r"x.yaml: inner: size\[1\]: expected int, got '3'"),
        ({"inner": {"size": [2, True]}}, "expected int, got True"),
        ({"items": {"size": 1}}, "x.yaml: items: expected a list"),
        ({"name": None}, "x.yaml: name: expected str, got None"),
        ({"table": [1]}, "x.yaml: table: expected a mapping"),
        ({"inner": 3}, "x.yaml: inner: expected a mapping with the keys of Inner"),
    ],
)
def test_invalid_data_error_names_the_place(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_plain(Outer, {**PLAIN, **change}, "x.yaml")
