"""`anomseg models list` and `anomseg models show`: bundles that ship, and checkpoints that others published."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anomseg_ros.catalog.entries import Catalog, CatalogEntry, load_catalog
from anomseg_ros.catalog.store import checkpoint_folder, record_path
from anomseg_ros.commands import options
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.resources import shipped_bundles
from anomseg_ros.core.schema import to_plain
from anomseg_ros.core.scores import DEFAULT_SCORES
from anomseg_ros.errors import BundleError, ConfigError, unknown_name

COLUMNS = ("name", "network", "classes", "input", "default score", "mIoU", "licence", "here")


def main_list(argv: Sequence[str] | None = None) -> int:
    """Print every shipped bundle and every entry of the catalog; returns 0."""
    parser = options.parser("models list", "List the bundles that ship and the published checkpoints of the catalog.")
    add_catalog_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    bundles = [_bundle_row(name, path) for name, path in shipped_bundles().items()]
    checkpoints = [_checkpoint_row(entry) for entry in load_catalog(args.catalog).checkpoints]
    if args.json:
        print(json.dumps({"bundles": bundles, "checkpoints": checkpoints}, indent=2))
        return 0
    print("bundles that ship\n" + _table(bundles))
    print("\npublished checkpoints, to be downloaded by `anomseg models fetch`\n" + _table(checkpoints))
    return 0


def main_show(argv: Sequence[str] | None = None) -> int:
    """Print all that is known of one bundle or published checkpoint; returns 0."""
    parser = options.parser("models show", "Print all that is known of a bundle or of a published checkpoint.")
    parser.add_argument("model", help="name of a shipped bundle or of a catalog entry, or a bundle's directory")
    add_catalog_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    found = find_model(args.model, load_catalog(args.catalog))
    facts = _bundle_facts(load_bundle(found)) if isinstance(found, Path) else _checkpoint_facts(found)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_lines(facts)))
    return 0


def add_catalog_option(parser: argparse.ArgumentParser) -> None:
    """Add --catalog, for those who keep a catalog of their own."""
    parser.add_argument("--catalog", type=Path, help="another catalog (default: the one that ships)")


def find_model(given: str, catalog: Catalog) -> Path | CatalogEntry:
    """Return the directory of a bundle or the catalog entry that `given` names. Raises ConfigError."""
    shipped = shipped_bundles()
    if given in shipped:
        return shipped[given]
    if given in catalog.names():
        return catalog.find(given)
    if Path(given).exists():
        return Path(given)
    raise ConfigError(f"{unknown_name('model', given, [*shipped, *catalog.names()])}; or give the path of a bundle")


def checkpoint_state(entry: CatalogEntry) -> str:
    """Return where a published checkpoint is on this machine, or that it is not."""
    path = checkpoint_folder() / entry.file
    if path.is_file():
        return str(path)
    return "begun" if path.with_name(f"{path.name}.part").is_file() else "no"


def measured_miou(quality: Mapping[str, Any]) -> tuple[float, str] | None:
    """Return the first mean IoU that a bundle states, as a fraction, and the keys of `quality` above it."""
    for path, value in _numbers(quality):
        if path[-1].split("_")[0].casefold() == "miou":
            fraction = value / 100 if value > 1 else value
            return fraction, ".".join(path[:-1]) or "bundle.yaml"
    return None


def _numbers(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _numbers(item, (*path, str(key)))
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            yield (*path, str(key)), float(item)


def _bundle_row(name: str, path: Path) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "")
    try:
        contract = load_bundle(path).contract
    except BundleError as error:
        # One damaged bundle must not hide the others.
        return {**row, "name": name, "here": f"DAMAGED: {error}"}
    miou = measured_miou(contract.quality)
    return {
        **row,
        "name": name,
        "network": contract.network,
        "classes": _class_count(len(contract.classes), contract.void_class),
        "input": f"{contract.input.width_px}x{contract.input.height_px}",
        "default score": contract.score_names[0],
        "mIoU": f"{miou[0]:.1%} ({miou[1]})" if miou else "",
        "licence": contract.provenance.licence or "not stated",
        "here": str(path),
    }


def _checkpoint_row(entry: CatalogEntry) -> dict[str, str]:
    return {
        "name": entry.name,
        "network": entry.network,
        "classes": _class_count(entry.num_classes, entry.untrained_class, "untrained"),
        "input": f"{entry.width_px}x{entry.height_px}",
        "default score": DEFAULT_SCORES[0],  # what export makes the first where there is no trained void class
        "mIoU": f"{entry.miou.percent:g}% ({entry.label_set} {entry.miou.split})" if entry.miou else "",
        "licence": entry.licence.name,
        "here": checkpoint_state(entry),
    }


def _class_count(count: int, extra: int | None, what: str = "void") -> str:
    return str(count) if extra is None else f"{count - 1} + {what}"


def _table(rows: list[dict[str, str]]) -> str:
    widths = {key: max([len(key), *(len(row[key]) for row in rows)]) for key in COLUMNS[:-1]}
    lines = [{key: key for key in COLUMNS}, *rows]
    return "\n".join(
        "  " + "  ".join(f"{line[key]:<{widths.get(key, 0)}}" for key in COLUMNS).rstrip() for line in lines
    )


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    card = bundle.directory / "README.md"
    facts = {"kind": "bundle", "directory": str(bundle.directory)}
    facts["model_card"] = str(card) if card.is_file() else "none"
    contract: dict[str, Any] = to_plain(bundle.contract, keep_none=True)
    return {**facts, **contract}


def _checkpoint_facts(entry: CatalogEntry) -> dict[str, Any]:
    path = checkpoint_folder() / entry.file
    facts = {"kind": "published checkpoint", "here": checkpoint_state(entry)}
    if record_path(path).is_file():
        facts["record"] = str(record_path(path))
    described: dict[str, Any] = to_plain(entry, keep_none=True)
    return {**facts, **described, "export_command": entry.export_command(path)}


def _lines(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield `key: value` lines; nested mappings below their key, lists of names on one line."""
    for key, item in value.items():
        label = f"{indent}{str(key).replace('_', ' ')}:"
        if isinstance(item, Mapping):
            yield label if item else f"{label} none"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            yield label
            yield from (f"{indent}  " + ", ".join(_words(entry)) for entry in item)
        else:
            yield f"{label} {_word(item)}"


def _words(item: Mapping[str, Any]) -> Iterator[str]:
    for key, value in item.items():
        yield str(value) if key == "name" else f"{key.replace('_', ' ')} {_word(value)}"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_word, value)) or "none"
    return "not known" if value is None else str(value)
