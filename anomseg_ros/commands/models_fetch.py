"""`anomseg models fetch`: download a published checkpoint after its licence is accepted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from anomseg_ros.catalog.download import SIZE_LIMIT_BYTES
from anomseg_ros.catalog.entries import CatalogEntry, load_catalog
from anomseg_ros.catalog.http import HttpRules, check_url
from anomseg_ros.catalog.store import Fetched, checkpoint_folder, fetch
from anomseg_ros.commands import options
from anomseg_ros.commands.models import add_catalog_option
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Show the licence, ask for its acceptance, download, and print the export command; return 0."""
    args = argument_parser().parse_args(argv)
    entry = load_catalog(args.catalog).find(args.name)
    folder: Path = args.output or checkpoint_folder()
    rules = HttpRules(allow_http=args.allow_http, timeout_s=args.timeout, attempts=args.attempts)
    if not (folder / entry.file).exists():
        check_url(entry.url, rules)
        print("\n".join(_terms(entry, folder)))
        _require_acceptance(entry, args.accept_licence)
    fetched = _fetch_with_progress(entry, folder, args.max_mib << 20, rules)
    print("\n".join(_result(entry, fetched)))
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg models fetch`."""
    defaults = HttpRules()
    parser = options.parser(
        "models fetch", "Download a published checkpoint of the catalog. No other command uses a network."
    )
    parser.add_argument("name", help="name of a catalog entry, see `anomseg models list`")
    parser.add_argument(
        "--output", type=options.output_folder, metavar="DIR", help=f"folder to write to (default: {_default_folder()})"
    )
    parser.add_argument("--accept-licence", action="store_true", help="accept the licence without being asked")
    add_catalog_option(parser)
    max_help = "largest accepted file size in MiB"
    parser.add_argument("--max-mib", type=int, default=SIZE_LIMIT_BYTES >> 20, help=max_help)
    timeout_help = "longest time in seconds without a response or data"
    parser.add_argument("--timeout", type=options.number, default=defaults.timeout_s, help=timeout_help)
    attempts_help = "number of connections without progress before the command gives up"
    parser.add_argument("--attempts", type=int, default=defaults.attempts, help=attempts_help)
    parser.add_argument("--allow-http", action="store_true", help="also accept http addresses (without encryption)")
    return parser


def _default_folder() -> str:
    home = str(Path.home())
    return str(checkpoint_folder()).replace(home, "~", 1).replace("%", "%%")


def _terms(entry: CatalogEntry, folder: Path) -> list[str]:
    size = f"{entry.size_bytes / 1e6:.1f} MB" if entry.size_bytes else "unknown size"
    lines = [f"{entry.name}: {entry.network}, {entry.label_set}"]
    lines += [f"  source:   {entry.source}", f"  file:     {entry.url} ({size})", f"  to:       {folder / entry.file}"]
    lines += [f"  authors:  {entry.authors}", f"  paper:    {entry.paper}"]
    lines += [f"  licence:  {entry.licence.name}, {entry.licence.url}"]
    if entry.licence.note:
        lines.append(f"            {entry.licence.note}")
    if not (entry.sha256 or entry.git_blob_sha1):
        lines.append("  digest:   none is published: the digest of the download is recorded for later comparisons")
    return lines


def _require_acceptance(entry: CatalogEntry, accepted: bool) -> None:
    if accepted:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            f"the licence of {entry.name}, {entry.licence.name}, is not accepted, and there is no terminal to ask the "
            f"user; read {entry.licence.url} and, if you accept it, pass --accept-licence"
        )
    try:
        answer = input(f"Do you accept the licence {entry.licence.name}? Type yes to download: ")
    except EOFError:
        answer = ""
    if answer.strip().casefold() != "yes":
        raise ConfigError(f"the licence of {entry.name} was not accepted; nothing was downloaded")


def _fetch_with_progress(entry: CatalogEntry, folder: Path, limit_bytes: int, rules: HttpRules) -> Fetched:
    console = Console(stderr=True)
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        with ProgressLines(*columns) as lines:
            return fetch(entry, folder, limit_bytes=limit_bytes, rules=rules, progress=lines)
    except KeyboardInterrupt:
        console.print("stopped; the received part is stored: run the same command again to continue")
        raise


def _result(entry: CatalogEntry, fetched: Fetched) -> list[str]:
    status = "downloaded" if fetched.new else "exists already, nothing was downloaded"
    lines = [f"{fetched.path}: {status}", f"sha256 {fetched.sha256}"]
    if fetched.checked_against:
        lines.append(f"it matches {fetched.checked_against}")
    else:
        lines.append("no digest is published for it; this one is stored beside the file for later comparisons")
    if entry.note:
        lines.append(f"note: {entry.note}")
    return [*lines, "to export it as a bundle:", f"  {entry.export_command(fetched.path)}"]
