from __future__ import annotations

import subprocess
import sys

import pytest

from anomseg_ros import __version__, cli
from anomseg_ros.errors import ConfigError


def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"anomseg {__version__}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: anomseg"),
        (["runn"], "did you mean 'run'"),
        (["bag"], "bag has: bag"),
        (["bag", "wirte"], "bag has: bag"),
    ],
)
def test_wrong_commands_exit_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "no-such-bundle", "x.png", "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("anomseg: error: 'no-such-bundle' is neither a bundle directory nor a shipped bundle")
    assert len(error.strip().splitlines()) == 1


def test_interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", lambda name: interrupted)
    assert cli.main(["run"]) == 130


def test_other_missing_modules_are_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> int:
        raise ModuleNotFoundError("no module", name="something_else")

    monkeypatch.setattr(cli, "_load", lambda name: broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["run"])


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help_that_starts_with_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*name.split(), "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: anomseg {name}")


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "anomseg_ros.cli", "run", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: anomseg run")


def test_error_classes_share_a_base() -> None:
    assert issubclass(ConfigError, cli.AnomsegError)
