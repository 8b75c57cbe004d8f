from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from file_server import FileServer, Handler, begin, running

from anomseg_ros.cli import main
from anomseg_ros.commands.models import measured_miou, short_licence
from anomseg_ros.core.resources import shipped_bundles

CONTENT = b"weights" * 20_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder downloads go to: never the user's own."""
    monkeypatch.setenv("ANOMSEG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


@pytest.fixture()
def server() -> Iterator[FileServer]:
    with running(FileServer(CONTENT)) as state:
        yield state


@pytest.fixture()
def catalog(server: FileServer, tmp_path: Path) -> Path:
    """A catalog with one entry, `tiny`, on the local server."""
    entry = {
        "name": "tiny",
        "network": "erfnet",
        "layout": "Eromera/erfnet_pytorch",
        "num_classes": 20,
        "untrained_class": 19,
        "label_set": "cityscapes",
        "height_px": 64,
        "width_px": 128,
        "url": server.url(),
        "file": "tiny.pth",
        "source": "https://example.org/tiny",
        "authors": "A. Author",
        "paper": "A Paper",
        "licence": {"name": "CC-BY-NC-4.0", "url": "https://example.org/licence", "note": "Research use only."},
        "normalisation": "RGB / 255",
    }
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump({"format_version": 1, "checkpoints": [entry]}))
    return path


def fetch_words(catalog: Path, *more: str) -> list[str]:
    return ["models", "fetch", "tiny", "--catalog", str(catalog), *more]


def test_list_shows_bundles_and_checkpoints(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    folder.mkdir()
    (folder / "enet-cityscapes.pth").write_bytes(b"")
    (folder / "enet-camvid-davidtvs.pth.part").write_bytes(b"")
    assert main(["models", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert set(shipped_bundles()) < set(lines)
    synthetic = " ".join(lines["enet-synthetic"].split())
    assert "19 + void 512x256 void" in synthetic and "42.3% (" in synthetic
    assert "1024x512" in lines["erfnet-cityscapes"] and "72.1% (cityscapes val)" in lines["erfnet-cityscapes"]
    assert "CC-BY-NC-4.0" in lines["erfnet-cityscapes"] and lines["erfnet-cityscapes"].endswith(" no")
    assert lines["enet-cityscapes"].endswith(str(folder / "enet-cityscapes.pth"))
    assert lines["enet-camvid-davidtvs"].endswith(" begun")


def test_list_compares_equal_figures_and_cuts_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  bisenet_lite-world")]
    assert len(rows) == 4 and all("(camvid val)" in row and "  Apache-2.0 …  " in row for row in rows)
    assert max(row.index("Apache-2.0") for row in rows) < 120
    assert (short_licence("MIT"), short_licence("not stated")) == ("MIT", "not stated")
    assert main(["models", "show", "bisenet_lite-world"]) == 0
    assert "are for research" in capsys.readouterr().out


def test_list_json_holds_bundles_and_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in listed["bundles"]} == set(shipped_bundles())
    assert {"name": "bisenet_v2-cityscapes", "classes": "19"}.items() <= listed["checkpoints"][4].items()


@pytest.mark.slow
def test_list_marks_damaged_bundle(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "share/anomseg_ros/models/broken")
    (tmp_path / "share/anomseg_ros/models/broken/model.onnx").write_bytes(b"")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "DAMAGED: " in out and "enet-synthetic" in out
    assert main(["models", "verify"]) == 1
    out = capsys.readouterr().out
    assert "enet-synthetic: ok" in out and "broken: WRONG" in out and "broken/model.onnx does not match" in out


def test_show_bundle_by_name_and_by_path(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    assert main(["models", "show", "enet-synthetic"]) == 0
    out = capsys.readouterr().out
    assert f"model card: {shipped_bundles()['enet-synthetic'] / 'README.md'}\n" in out
    assert "  height px: 256\n" in out and "  road, color 128, 64, 128, train id 0\n" in out
    assert main(["models", "show", str(tiny_bundle), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "tiny" and shown["temperature"] == 1.5 and shown["model_card"] == "none"


def test_show_checkpoint_and_unknown_name(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["models", "show", "erfnet-cityscapes"]) == 0
    out = capsys.readouterr().out
    assert "  name: CC-BY-NC-4.0\n" in out and "sha256: unknown\n" in out
    assert f"export command: anomseg export --network erfnet --checkpoint {folder}/erfnet-cityscapes.pth" in out
    assert main(["models", "show", "enet-synthetik"]) == 1
    assert (
        "unknown model 'enet-synthetik'; did you mean 'enet-synthetic'? known: enet-synthetic, "
        in capsys.readouterr().err
    )


def test_measured_miou_is_found_at_any_depth() -> None:
    assert measured_miou({"seconds": 3, "camvid val": {"pixel_accuracy": 0.9, "miou": 0.55}}) == (0.55, "camvid val")
    assert measured_miou({"pseudo_label val": {"miou": 0.37}, "camvid val": {"miou": 0.55}}) == (0.55, "camvid val")
    assert measured_miou({"pseudo_label val": {"miou": 0.37}}) == (0.37, "pseudo_label val")
    assert measured_miou({"miou_percent": 61.5}) == (0.615, "bundle.yaml")
    assert measured_miou({"note": "miou", "done": True}) is None


def test_verify_runs_graph_and_reports_broken_one(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    assert main(["models", "verify", str(tiny_bundle), "enet-synthetic"]) == 0
    out = capsys.readouterr().out
    assert "one frame gives labels and void, " in out and "bundle.yaml has no digest of README.md" in out
    # Digests may match what was never a graph.
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"not a graph")
    contract = yaml.safe_load((broken / "bundle.yaml").read_text())
    contract["files"]["model.onnx"] = hashlib.sha256(b"not a graph").hexdigest()
    (broken / "bundle.yaml").write_text(yaml.safe_dump(contract))
    assert main(["models", "verify", str(broken), str(tiny_bundle)]) == 1
    out = capsys.readouterr().out
    assert f"{broken}: WRONG" in out and "model.onnx" in out and f"{tiny_bundle}: ok" in out


def test_verify_compares_labels_with_contract(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    contract = yaml.safe_load((other / "bundle.yaml").read_text())
    for info in contract["classes"]:
        info["train_id"] += 100 if info["train_id"] < 100 else 0
    (other / "bundle.yaml").write_text(yaml.safe_dump(contract))
    assert main(["models", "verify", str(other)]) == 1
    assert "not in bundle.yaml" in capsys.readouterr().out


def test_fetch_without_terminal_needs_accept_licence(
    catalog: Path, server: FileServer, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(fetch_words(catalog)) == 1
    captured = capsys.readouterr()
    assert "pass --accept-licence" in captured.err
    for fact in ("https://example.org/tiny", server.url(), "A. Author", "A Paper", "CC-BY-NC-4.0", "Research use only"):
        assert fact in captured.out
    assert server.requests == [] and not folder.exists()


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("no", 1)])
def test_fetch_on_terminal_asks_about_licence(
    catalog: Path, server: FileServer, folder: Path, answer: str, code: int
) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "anomseg_ros.cli", *fetch_words(catalog)]
    process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(ours, f"{answer}\n".encode())
    out, err = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code, err
    assert "Do you accept the licence CC-BY-NC-4.0?" in out + err
    assert len(server.requests) == (1 if code == 0 else 0)
    assert (folder / "tiny.pth").exists() == (code == 0)
    assert code == 0 or "was not accepted; nothing was downloaded" in err


def test_fetch_then_verify_then_fetch_again(
    catalog: Path, server: FileServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fetch_words(catalog, "--accept-licence")) == 0
    out = capsys.readouterr().out
    assert (folder / "tiny.pth").read_bytes() == CONTENT
    assert f"sha256 {hashlib.sha256(CONTENT).hexdigest()}" in out and "stored beside the file" in out
    assert f"anomseg export --network erfnet --checkpoint {folder}/tiny.pth --num-classes 20" in out

    assert main(fetch_words(catalog)) == 0  # no question: the licence was accepted
    out = capsys.readouterr().out
    assert "nothing was downloaded" in out and "it matches the sha256 recorded" in out
    assert len(server.requests) == 1

    for model in ("tiny", str(folder / "tiny.pth")):
        assert main(["models", "verify", model, "--catalog", str(catalog)]) == 0
    (folder / "tiny.pth").write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["models", "verify", "tiny", "--catalog", str(catalog)]) == 1
    assert f"{folder}/tiny.pth is not the expected file" in capsys.readouterr().out
    assert len(server.requests) == 1


def test_fetch_with_output_writes_to_that_folder(catalog: Path, tmp_path: Path, folder: Path) -> None:
    assert main(fetch_words(catalog, "--accept-licence", "--output", str(tmp_path / "mine"))) == 0
    assert (tmp_path / "mine" / "tiny.pth").read_bytes() == CONTENT and not folder.exists()


@pytest.mark.parametrize("name", ["../tiny", "/etc/passwd", "tiny.pth"])
def test_fetch_of_unknown_name_is_refused(
    catalog: Path, server: FileServer, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "fetch", name, "--catalog", str(catalog), "--accept-licence"]) == 1
    assert f"unknown checkpoint '{name}'; known: tiny" in capsys.readouterr().err
    assert server.requests == []


def test_fetch_over_plain_http_is_refused(
    catalog: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog.write_text(catalog.read_text().replace(server.address, "http://models.example"))
    assert main(fetch_words(catalog, "--accept-licence")) == 1
    assert "--allow-http takes plain http" in capsys.readouterr().err


def test_fetch_interrupted_by_ctrl_c_keeps_partial_file(catalog: Path, server: FileServer, folder: Path) -> None:
    stopped = threading.Event()

    def half_and_wait(handler: Handler, state: FileServer) -> None:
        handler.wfile.write(begin(handler, state)[:50_000])
        stopped.wait(90)

    server.faults = [half_and_wait]
    words = [sys.executable, "-m", "anomseg_ros.cli", *fetch_words(catalog, "--accept-licence")]
    # A shell starts what runs in its background with Ctrl-C ignored, and the tests may run so.
    heed = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    words = [sys.executable, "-c", heed, *words]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = folder / "tiny.pth.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size == 50_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    stopped.set()
    assert process.returncode == 130 and "run the same command again to continue" in err and "Traceback" not in err
    assert part.stat().st_size == 50_000
    assert main(fetch_words(catalog, "--accept-licence")) == 0
    assert server.ranges_asked() == [None, "bytes=50000-"]
    assert (folder / "tiny.pth").read_bytes() == CONTENT


NO_NETWORK = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from anomseg_ros import cli
codes = [cli.main(words.split()) for words in ("models list", "models show erfnet-cityscapes", "models verify")]
sys.exit(max(codes))
"""


@pytest.mark.slow
def test_other_commands_do_not_use_network() -> None:
    done = subprocess.run([sys.executable, "-c", NO_NETWORK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
