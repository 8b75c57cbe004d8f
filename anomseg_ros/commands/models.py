"""`anomseg models list` and `anomseg models show`: shipped bundles and published checkpoints."""

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
from anomseg_ros.errors import BundleError, ConfigError, suggested
from anomseg_ros.scores import default_scores

COLUMNS = ("name", "network", "classes", "input", "default score", "mIoU", "licence", "here")
NO_LICENCE = "not stated"
PSEUDO_LABELLED = "pseudo_label"
"""Beginning of the name of a dataset with pseudo-labels in a bundle's `quality`."""


def argument_parser_list() -> argparse.ArgumentParser:
    """Return the parser of `anomseg models list`."""
    parser = options.parser("models list", "List the shipped bundles and the published checkpoints of the catalog.")
    add_catalog_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main_list(argv: Sequence[str] | None = None) -> int:
    """Print every shipped bundle and every entry of the catalog; return 0."""
    args = argument_parser_list().parse_args(argv)
    bundles = [_bundle_row(name, path) for name, path in shipped_bundles().items()]
    checkpoints = [_checkpoint_row(entry) for entry in load_catalog(args.catalog).checkpoints]
    if args.json:
        print(json.dumps({"bundles": bundles, "checkpoints": checkpoints}, indent=2))
        return 0
    print("shipped bundles\n" + _table(bundles))
    print("\npublished checkpoints, to be downloaded by `anomseg models fetch`\n" + _table(checkpoints))
    return 0


def argument_parser_show() -> argparse.ArgumentParser:
    """Return the parser of `anomseg models show`."""
    parser = options.parser("models show", "Show all facts about a bundle or a published checkpoint.")
    parser.add_argument("model", help="name of a shipped bundle or of a catalog entry, or a bundle's directory")
    add_catalog_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main_show(argv: Sequence[str] | None = None) -> int:
    """Print the facts about one bundle or published checkpoint; return 0."""
    args = argument_parser_show().parse_args(argv)
    model = find_model(args.model, load_catalog(args.catalog))
    facts = _bundle_facts(load_bundle(model)) if isinstance(model, Path) else _checkpoint_facts(model)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_fact_lines(facts)))
    return 0


def add_catalog_option(parser: argparse.ArgumentParser) -> None:
    """Add --catalog, for users with their own catalog."""
    parser.add_argument("--catalog", type=Path, help="catalog file (default: the shipped catalog)")


def find_model(name: str, catalog: Catalog) -> Path | CatalogEntry:
    """Return the path of a bundle or file, or a catalog entry. Raises ConfigError.

    name: name of a shipped bundle or of a catalog entry, or an existing path.
    """
    shipped = shipped_bundles()
    if name in shipped:
        return shipped[name]
    if name in catalog.names():
        return catalog.find(name)
    if Path(name).exists():
        return Path(name)
    known = suggested(name, [*shipped, *catalog.names()], "known")
    raise ConfigError(f"unknown model {name!r}; {known}; or give the path of a bundle")


def checkpoint_state(entry: CatalogEntry) -> str:
    """Return the path of a published checkpoint on this machine, `begun` for an incomplete download, or `no`."""
    path = checkpoint_folder() / entry.file
    if path.is_file():
        return str(path)
    return "begun" if path.with_name(f"{path.name}.part").is_file() else "no"


def measured_miou(quality: Mapping[str, Any]) -> tuple[float, str] | None:
    """Return a mean IoU in a bundle's `quality`, as a fraction, and the keys above it.

    The first one on labels that people made comes before the first one on pseudo-labels, which do not compare with it.
    """
    figures = [
        (value / 100 if value > 1 else value, ".".join(path[:-1]) or "bundle.yaml")
        for path, value in _numbers(quality)
        if path[-1].split("_")[0].casefold() == "miou"
    ]
    return min(figures, key=lambda figure: figure[1].startswith(PSEUDO_LABELLED), default=None)


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
        # A damaged bundle must not prevent the list of the others.
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
        "licence": contract.provenance.licence or NO_LICENCE,
        "here": str(path),
    }


def _checkpoint_row(entry: CatalogEntry) -> dict[str, str]:
    return {
        "name": entry.name,
        "network": entry.network,
        "classes": _class_count(entry.num_classes, entry.untrained_class, "untrained"),
        "input": f"{entry.width_px}x{entry.height_px}",
        "default score": default_scores(with_void=False)[0],  # published checkpoints have no trained void class
        "mIoU": f"{entry.miou.percent:g}% ({entry.label_set} {entry.miou.split})" if entry.miou else "",
        "licence": entry.licence.name,
        "here": checkpoint_state(entry),
    }


def _class_count(count: int, extra_class: int | None, extra_name: str = "void") -> str:
    return str(count) if extra_class is None else f"{count - 1} + {extra_name}"


def short_licence(text: str) -> str:
    """Return the name at the beginning of a licence text, with dots for what `anomseg models show` says beyond it."""
    name, _, rest = text.partition(" ")
    return f"{name.rstrip(';,')} …" if rest and text != NO_LICENCE else text


def _table(rows: list[dict[str, str]]) -> str:
    rows = [{**row, "licence": short_licence(row["licence"])} for row in rows]
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


def _fact_lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield `key: value` lines: nested mappings indented below their key, each mapping of a list on one line."""
    for key, value in facts.items():
        label = f"{indent}{str(key).replace('_', ' ')}:"
        if isinstance(value, Mapping):
            yield label if value else f"{label} none"
            yield from _fact_lines(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield label
            yield from (f"{indent}  " + ", ".join(_entry_texts(entry)) for entry in value)
        else:
            yield f"{label} {_value_text(value)}"


def _entry_texts(entry: Mapping[str, Any]) -> Iterator[str]:
    for key, value in entry.items():
        yield str(value) if key == "name" else f"{key.replace('_', ' ')} {_value_text(value)}"


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value_text, value)) or "none"
    return "unknown" if value is None else str(value)
