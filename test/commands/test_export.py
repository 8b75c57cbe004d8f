from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.cli import main
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "mide.safetensors"
    save_checkpoint(path, build_network("mide_net", 20), {})
    return path


@pytest.mark.slow
def test_command_line_exports_bundle_with_scores(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--network", "mide_net", "--checkpoint", str(checkpoint), "--num-classes", "20", "--void-class", "19"]
    words += ["--size", "64x128", "--score", "msp,max_logit,void", "--output", str(tmp_path / "out")]
    assert main(["export", *words, "--torch-program"]) == 0
    contract = load_bundle(tmp_path / "out").contract
    assert contract.score_names == ("msp", "max_logit", "void")
    assert contract.name == "out" and set(contract.files) == {"model.onnx", "model.pt2"}
    assert contract.provenance.source_sha256
    assert contract.provenance.command is not None and contract.provenance.command.startswith(
        "anomseg export --network"
    )
    assert "differs from the torch network by at most" in capsys.readouterr().err
    assert main(["export", *words]) == 1
    assert "exists; choose another output or pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-classes", "20"], "give --label-set and, for a void classifier, --void-class"),
        (["--num-classes", "20", "--void-class", "19", "--score", "viod"], "unknown score 'viod'; known: void"),
        (["--num-classes", "19"], "20"),
    ],
)
def test_wrong_arguments_are_errors(
    checkpoint: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["export", "--network", "mide_net", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main([*common, "--size", "64x128", *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
