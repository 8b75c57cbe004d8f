"""The completion scripts, in a real shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("shtab", reason="needs anomseg_ros[completion]")

from anomseg_ros.cli import main
from anomseg_ros.command_table import Command
from anomseg_ros.commands.completion import SHELLS

ASK = """
source "$1"; shift
COMP_WORDS=(anomseg "$@"); COMP_CWORD=$#
_shtab_anomseg
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "anomseg_ros.cli", "completion", "bash"], capture_output=True, text=True, check=True
    )
    path = tmp_path_factory.mktemp("completion") / "anomseg.bash"
    path.write_text(done.stdout)
    return path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["qu"], {"quantize"}),
        (["models", "sh"], {"show"}),
        (["export", "--proc"], {"--processor"}),
        (["export", "--processor", "g"], {"gpu"}),
        (["datasets", "p"], {"pseudo-label"}),
    ],
)
def test_bash_completes(script: Path, words: list[str], expected: set[str]) -> None:
    done = subprocess.run(["bash", "-c", ASK, "bash", script, *words], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_paths(script: Path, tmp_path: Path) -> None:
    (tmp_path / "my-bundle").mkdir()
    words = ["run", "my-"]
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", script, *words], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["my-bundle"]


@pytest.mark.parametrize("shell", sorted(set(SHELLS) - {"bash"}))
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "quantize" in text and "--keep-float" in text.replace("keep-float", "--keep-float")


def test_commands_whose_packages_are_absent_have_no_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser_of = Command.argument_parser

    def without_torch(command: Command) -> object:
        if command.place.endswith("commands.prune:main"):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return parser_of(command)

    monkeypatch.setattr(Command, "argument_parser", without_torch)
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    assert "prune" in text and "--held-out-frames" in text and "--round-to" not in text
