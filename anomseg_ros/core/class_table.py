"""classes.yaml: the classes of one's own label images. What names, colours, values and splits there may be."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from anomseg_ros.core.labels import LABEL_SETS, UNLABELLED, ClassInfo, label_set
from anomseg_ros.core.output_files import write_file
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import ConfigError, closest_first, reason_of

CLASSES_FILE = "classes.yaml"
ROLES = KNOWN_ROLE, UNLABELLED_ROLE, IGNORED_ROLE, OUTLIER_ROLE = "known", "unlabelled", "ignored", "outlier"
MAX_KNOWN = 250
"""Train ids above are values with a meaning: 252 known without a class, 254 outlier, 255 unlabelled."""

LABEL_SET_HELP = f"the known classes: {', '.join(LABEL_SETS)}, or a {CLASSES_FILE} (docs/own_classes.md)"

_MAX_BYTES = 1_000_000
_PUBLISHED = " or ".join(LABEL_SETS)


@dataclass(frozen=True)
class OwnClass:
    """One class of label images.

    id: its value in them, 0 to 255. color: RGB; None for one that differs from the others. role: "known", a class to
    learn; "unlabelled", pixels that nobody labelled; "ignored", familiar things that are no class, such as one's own
    bonnet; "outlier", anomalies.
    """

    name: str
    id: int
    color: tuple[int, int, int] | None = None
    role: str = KNOWN_ROLE


@dataclass(frozen=True)
class SplitRule:
    """The frames of a split. Exactly one is given: list, a text file of frame names; pattern, of names; or drives."""

    list: str | None = None
    pattern: str | tuple[str, ...] | None = None
    drives: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ClassTable:
    """Contents of classes.yaml. name: of the label set; licence: terms of the frames; made_from: what was imported."""

    classes: tuple[OwnClass, ...]
    name: str = ""
    licence: str = ""
    splits: Mapping[str, SplitRule] = field(default_factory=dict)
    made_from: str = ""

    def known(self) -> tuple[ClassInfo, ...]:
        """Return the known classes; train ids follow their order in the file."""
        rows = [own for own in self.classes if own.role == KNOWN_ROLE]
        colors = _colors([own.color for own in rows])
        return tuple(ClassInfo(own.name, color, i) for i, (own, color) in enumerate(zip(rows, colors, strict=True)))

    def values(self, role: str) -> tuple[int, ...]:
        """Return the label values of a role, in the order of the file; 255 is unlabelled unless a class has it."""
        found = tuple(own.id for own in self.classes if own.role == role)
        taken = any(own.id == UNLABELLED for own in self.classes)
        return found if taken or role != UNLABELLED_ROLE else (*found, UNLABELLED)


def read_class_table(path: Path) -> ClassTable:
    """Read classes.yaml, given by its path or its folder's. Raises ConfigError, which names the file and what to do."""
    path = path / CLASSES_FILE if path.is_dir() else path
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} has more than {_MAX_BYTES} bytes; expected a list of classes")
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {str(path)!r}; write it (docs/own_classes.md), or let `anomseg datasets import` write it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {reason_of(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {reason_of(error)}") from None
    table = from_plain(ClassTable, data, str(path))
    check_class_table(table, str(path))
    return table


def find_label_set(name_or_path: str) -> tuple[str, tuple[ClassInfo, ...]]:
    """Return name and classes of a label set: a published one, or the one in a classes.yaml or a folder that has it.

    Raises ConfigError that lists the names.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path in LABEL_SETS or not (path.is_file() or path.is_dir()):
        if name_or_path not in LABEL_SETS and path.suffix in (".yaml", ".yml"):
            raise ConfigError(f"label set {name_or_path!r} does not exist; give a {CLASSES_FILE}, or {_PUBLISHED}")
        return name_or_path, label_set(name_or_path)
    table = read_class_table(path)
    return label_set_name(table, (path if path.is_dir() else path.parent).resolve().name), table.known()


def label_set_name(table: ClassTable, folder: str) -> str:
    """Return the name of the label set: of a published one with these classes, the stated one, or the folder's."""
    names = [info.name for info in table.known()]
    same = [name for name, published in LABEL_SETS.items() if [info.name for info in published] == names]
    own = table.name or folder or "own"
    return same[0] if same else f"own {own}" if own in LABEL_SETS else own


def write_class_table(table: ClassTable, path: Path) -> None:
    """Write classes.yaml after checking it. Raises ConfigError and OutputError."""
    check_class_table(table, str(path))
    plain = {key: value for key, value in to_plain(table).items() if value not in ("", {})}
    plain = {key: plain[key] for key in ("name", "classes", "splits", "licence", "made_from") if key in plain}
    write_file(path, yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def check_class_table(table: ClassTable, where: str) -> None:
    """Raise ConfigError for doubled names, values or colours, values out of range, and rules of no meaning."""
    known = [own for own in table.classes if own.role == KNOWN_ROLE]
    for own in table.classes:
        _check_class(own, f"{where}: class {own.name!r}")
    _refuse_doubles(where, "name", [own.name for own in table.classes])
    _refuse_doubles(where, "id", [own.id for own in table.classes])
    _refuse_doubles(where, "color", [own.color for own in known if own.color is not None])
    if not 1 <= len(known) <= MAX_KNOWN:
        raise ConfigError(
            f"{where}: {len(known)} known classes; give 1 to {MAX_KNOWN} classes of the role {KNOWN_ROLE}"
        )
    published = LABEL_SETS.get(table.name)
    if published is not None and [info.name for info in published] != [own.name for own in known]:
        raise ConfigError(
            f"{where}: name {table.name!r} is that of a published label set with other classes; choose another name"
        )
    for split, rule in table.splits.items():
        given = [key for key in ("list", "pattern", "drives") if getattr(rule, key) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{where}: split {split!r} gives {' and '.join(given) or 'nothing'}; give one of list (a file of "
                "names), pattern (such as 'night/*') or drives"
            )


def _check_class(own: OwnClass, where: str) -> None:
    if not own.name.strip():
        raise ConfigError(f"{where} has an empty name; give every class a name")
    if not 0 <= own.id <= 255:
        raise ConfigError(f"{where} has id {own.id}; label images have values 0 to 255")
    if own.color is not None and not all(0 <= channel <= 255 for channel in own.color):
        raise ConfigError(f"{where} has color {list(own.color)}; give red, green and blue, each 0 to 255")
    if own.role not in ROLES:
        raise ConfigError(f"{where} has role {own.role!r}; expected {', '.join(closest_first(own.role, ROLES))}")


def _refuse_doubles(where: str, key: str, values: Sequence[object]) -> None:
    for value in values:
        if values.count(value) > 1:
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(f"{where}: {key} {shown!r} is given to {values.count(value)} classes; each needs its own")


def _colors(given: Sequence[tuple[int, int, int] | None]) -> list[tuple[int, int, int]]:
    """Return a colour for each class: its own, or the next hue that no other class has."""
    taken, colors, step = {color for color in given if color is not None}, [], 0
    for color in given:
        while color is None:
            # Steps of the golden ratio spread any number of hues evenly.
            hue = (step * 0.618034) % 1.0
            red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, (0.85, 0.6)[step % 2])
            step += 1
            free = (round(255 * red), round(255 * green), round(255 * blue))
            color = None if free in taken else free
        taken.add(color)
        colors.append(color)
    return colors


class _Dumper(yaml.SafeDumper):
    """Writes one class a line."""

    def represent_mapping(self, tag: str, mapping: object, flow_style: bool | None = None) -> yaml.MappingNode:
        """Represent the mappings of a class or a split, whose values are no mappings, on one line."""
        node = super().represent_mapping(tag, mapping, flow_style)  # type: ignore[arg-type]
        parts = [value for _, value in node.value]
        rows = [part.value for part in parts if isinstance(part, yaml.SequenceNode)]
        nested = any(isinstance(part, yaml.CollectionNode) for row in rows for part in row)
        flat = not nested and not any(isinstance(part, yaml.MappingNode) for part in parts)
        node.flow_style = flat
        for part in parts:
            if flat and isinstance(part, yaml.SequenceNode):
                part.flow_style = True
        return node
