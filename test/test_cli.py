from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from anomseg_ros import __version__, cli
from anomseg_ros.catalog.entries import load_catalog
from anomseg_ros.command_table import COMMANDS, GROUPS, Command
from anomseg_ros.core.resources import shipped_bundles
from anomseg_ros.errors import AnomsegError, ConfigError


def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    places = [text.index(f"\n{group}:") for group in GROUPS]
    assert places == sorted(places)


def test_version_option_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_unknown_command_exits_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_error_is_printed_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "no-such-bundle", "x.png", "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("anomseg: error: 'no-such-bundle' is neither a bundle directory nor a shipped bundle")
    assert len(error.strip().splitlines()) == 1


def test_interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Command, "main", lambda command: interrupted)
    assert cli.main(["run"]) == 130


def test_other_missing_module_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> int:
        raise ModuleNotFoundError("no module", name="something_else")

    monkeypatch.setattr(Command, "main", lambda command: broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["run"])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*name.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: anomseg {name}")
    assert text.rstrip().endswith(f"example:\n  {COMMANDS[name].example}")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_example_is_a_command_line_of_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example, _, _ = COMMANDS[name].example.partition(" > ")
    program, *words = shlex.split(example)
    assert program == "anomseg" and words[: len(name.split())] == name.split()
    COMMANDS[name].argument_parser().parse_args(words[len(name.split()) :])
    assert not capsys.readouterr().err, "the example has an old name of an option"


def test_models_in_examples_exist() -> None:
    fetched, shown = (COMMANDS[name].example.split()[3] for name in ("models fetch", "models show"))
    assert fetched in {entry.name for entry in load_catalog().checkpoints} and shown in shipped_bundles()


def test_module_can_be_run_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "anomseg_ros.cli", "run", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: anomseg run")


def test_error_classes_share_a_base() -> None:
    assert issubclass(ConfigError, AnomsegError)


def test_argument_names_in_errors_become_options() -> None:
    said = cli.as_options("accept it with `accept_drift`, give `checkpoint`, see `anomseg run` and `max_latency_ms`")
    assert said == "accept it with --accept-drift, give `checkpoint`, see `anomseg run` and --max-latency-ms"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["models", "list"]])
def test_unwritable_standard_output_is_a_one_line_error(words: list[str]) -> None:
    command = f"{sys.executable} -m anomseg_ros.cli {' '.join(words)}"
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True)
    assert full.returncode == 1
    assert full.stderr.startswith("anomseg: error: No space left on device; make room") and full.stderr.count("\n") == 1
    gone = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True)
    assert gone.returncode in (0, 141) and gone.stderr == ""


def test_os_error_is_printed_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(words: list[str]) -> int:
        return len(open(words[0], encoding="utf-8").read())

    monkeypatch.setattr(Command, "main", lambda command: refused)
    for path, reason in (("/nowhere/x", "No such file or directory"), ("/", "Is a directory"), ("n" * 300, "too long")):
        assert cli.main(["run", path]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"anomseg: error: {path!r}: ") and reason in error and error.count("\n") == 1


def test_invalid_utf8_in_names_can_be_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "anomseg_ros.cli", "report", os.fsdecode(b"caf\xe9.json")]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 1 and b"caf\\udce9.json is not an evaluation" in done.stderr
