from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anomseg_ros.catalog.entries import CatalogEntry, Licence, load_catalog
from anomseg_ros.catalog.http import HttpRules, check_url
from anomseg_ros.command_table import COMMANDS
from anomseg_ros.core.schema import to_plain
from anomseg_ros.errors import ConfigError


def plain_entry(**changes: object) -> dict[str, object]:
    """Return the plain data of a valid entry with changes."""
    entry = CatalogEntry(
        name="tiny",
        network="erfnet",
        layout="Eromera/erfnet_pytorch",
        num_classes=19,
        label_set="cityscapes",
        height_px=64,
        width_px=128,
        url="https://example.org/tiny.pth",
        file="tiny.pth",
        source="https://example.org",
        authors="A. Author",
        paper="A Paper",
        licence=Licence("MIT", "https://example.org/licence"),
        normalisation="RGB / 255",
    )
    return {**to_plain(entry), **changes}


def write_catalog(path: Path, *entries: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump({"format_version": 1, "checkpoints": list(entries)}))
    return path


def test_shipped_catalog_agrees_with_the_layouts() -> None:
    from anomseg_ros.networks.layouts import LAYOUTS

    layouts = {(layout.network, layout.name): layout for layout in LAYOUTS}
    catalog = load_catalog()
    networks = {"erfnet", "enet", "bisenet_v1", "bisenet_v2", "espnetv2", "eomt", "intern_image"}
    assert {entry.network for entry in catalog.checkpoints} == networks
    for entry in catalog.checkpoints:
        layout = layouts[entry.network, entry.layout]
        described = "RGB / 255"
        if any(layout.mean) or set(layout.std) != {1.0}:
            mean, std = (f"({', '.join(f'{value:.4f}' for value in values)})" for values in (layout.mean, layout.std))
            described += f", minus {mean}, by {std}"
        assert entry.normalisation == described
        check_url(entry.url, HttpRules())
        assert entry.url.startswith(entry.source.replace("github.com", "raw.githubusercontent.com") + "/") or (
            entry.url.startswith((entry.source + "/releases/", entry.source + "/resolve/"))
        )
        assert entry.licence.url.startswith("https://") and entry.miou is not None


def test_export_commands_of_all_entries_are_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fails at the missing checkpoint, which it opens after checking options, label set and scores."""
    import shlex

    from anomseg_ros import cli

    for entry in load_catalog().checkpoints:
        words = shlex.split(entry.export_command(tmp_path / entry.file))
        assert words[:2] == ["anomseg", "export"] and "export" in COMMANDS
        assert cli.main(words[1:]) == 1
        assert f"no checkpoint file at {tmp_path / entry.file}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "MIT"}, "unknown key 'licens'; did you mean 'licence'?"),
        ({"file": "../tiny.pth"}, "file '../tiny.pth' must be letters"),
        ({"file": "/tmp/tiny.pth"}, "no folder"),
        ({"file": ".."}, "no folder"),
        ({"file": "tiny.pth\n"}, "no folder"),
        ({"name": "--output"}, "name '--output' must be letters"),
        ({"label_set": "cityscape"}, "unknown label set 'cityscape'; known: cityscapes"),
        ({"sha256": "abc"}, "sha256 'abc' must be 64"),
        ({"git_blob_sha1": "A" * 40}, "must be 40 lower-case"),
        ({"num_classes": 20}, "num_classes 20, but label set 'cityscapes' with untrained_class None has 19"),
        ({"height_px": 0}, "must be positive"),
        ({"size_bytes": "12"}, "size_bytes: expected int, got '12'"),
        ({"licence": "MIT"}, "licence: expected a mapping"),
    ],
)
def test_invalid_entry_error_names_the_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_catalog(write_catalog(tmp_path / "catalog.yaml", plain_entry(**changes)))
    assert message in str(raised.value) and str(tmp_path / "catalog.yaml") in str(raised.value)


def test_duplicates_newer_formats_and_invalid_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    with pytest.raises(ConfigError, match="name 'tiny' is there twice"):
        load_catalog(write_catalog(path, plain_entry(), plain_entry(file="other.pth")))
    with pytest.raises(ConfigError, match=r"file 'tiny.pth' is there twice"):
        load_catalog(write_catalog(path, plain_entry(), plain_entry(name="other")))
    path.write_text("format_version: 2\ncheckpoints: []")
    with pytest.raises(ConfigError, match="format_version 2"):
        load_catalog(path)
    path.write_text("[")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_catalog(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_catalog(tmp_path / "missing.yaml")


def test_unknown_name_error_suggests_the_closest() -> None:
    with pytest.raises(ConfigError, match="unknown checkpoint 'enet-cityscape'; known: enet-cityscapes, "):
        load_catalog().find("enet-cityscape")
