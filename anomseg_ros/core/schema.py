"""Strict conversion of plain data (parsed YAML) to frozen dataclasses and back. An unknown key is an error.

A validation library is not used because the versions in ROS distributions and on PyPI differ by a major version, and
this package must install from either.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

from anomseg_ros.errors import ConfigError, closest_first

T = TypeVar("T")

SHOWN_CHARACTERS = 200


def from_plain(cls: type[T], data: object, where: str) -> T:
    """Return an instance of the dataclass `cls` filled from a mapping.

    `where` names the file and key in messages. Nested dataclasses, tuples, mappings, optional and scalar fields are
    checked. Raises ConfigError for unknown or missing keys and values of another type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a mapping with the keys of {cls.__name__}, got {shown(data)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls)) if field.init}
    _refuse_unknown_keys(data, fields, where)
    _refuse_missing_keys(data, fields, where)
    values = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    return cls(**values)


def to_plain(value: Any, *, keep_none: bool = False) -> Any:
    """Return dataclasses, tuples and mappings as the dicts and lists of YAML and JSON.

    None fields are left out unless `keep_none`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_plain(item, keep_none=keep_none) for name, item in items if keep_none or item is not None}
    if isinstance(value, Mapping):
        return {key: to_plain(item, keep_none=keep_none) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item, keep_none=keep_none) for item in value]
    return value


def shown(value: object) -> str:
    """Return a value as an error shows it: its beginning, if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text)} characters)"


def _refuse_unknown_keys(data: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key in data:
        if key not in known:
            options = closest_first(str(key), known)
            known_keys = ", ".join(options)
            raise ConfigError(f"{where}: unknown key {shown(key)}; did you mean {options[0]!r}? Known: {known_keys}")


def _refuse_missing_keys(data: Mapping[str, Any], fields: Mapping[str, dataclasses.Field[Any]], where: str) -> None:
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in data]
    if missing:
        raise ConfigError(f"{where}: missing key(s) {', '.join(map(repr, missing))}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, where)
    if origin is tuple:
        return _convert_tuple(hint, value, where)
    if origin in (dict, Mapping):
        return _convert_mapping(hint, value, where)
    return _convert_scalar(hint, value, where)


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    if value is None:
        return None
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    lists = [option for option in options if typing.get_origin(option) is tuple]
    # In a union of a list and another type, such as `str | tuple[X, ...]`, the value's type decides.
    fitting = lists if isinstance(value, (list, tuple)) else [option for option in options if option not in lists]
    (inner,) = fitting or options
    return _convert(inner, value, where)


def _convert_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {shown(value)}")
    args = typing.get_args(hint)
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        raise ConfigError(f"{where}: expected {len(args)} values, got {shown(value)}")
    return tuple(_convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))


def _convert_mapping(hint: Any, value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {shown(value)}")
    key_hint, item_hint = typing.get_args(hint)
    return {
        _convert(key_hint, key, f"{where}: key {shown(key)}"): _convert(item_hint, item, f"{where}: {key}")
        for key, item in value.items()
    }


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where}: expected float, got {shown(value)}: {error}") from None
    # isinstance takes a bool for an int; an integer field must not.
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {shown(value)}")
    return value
