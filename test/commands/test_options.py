"""The options of all commands: one name for one thing, old names with a note, the bundle in one place."""

from __future__ import annotations

import argparse
from collections import defaultdict

import pytest

from anomseg_ros.cli import main
from anomseg_ros.command_table import COMMANDS
from anomseg_ros.commands import options

OLD_NAMES = {
    "run": {"--scores": "--score"},
    "export": {"--scores": "--score", "--target": "--processor"},
    "quantize": {"--fine-tune": "--fine-tune-steps"},
    "demo": {"--frames": "--max-frames", "--topic": "--image-topic"},
    "compare": {"--frames": "--top"},
    "calibrate score": {"--frames": "--max-frames"},
    "calibrate threshold": {"--topic": "--image-topic", "--rate": "--fps"},
    "bag write": {"--rate": "--fps", "--topic": "--image-topic"},
    "bag evaluate": {"--topic": "--image-topic"},
    "datasets check": {"--threads": "--workers"},
    "datasets cut-paste": {"--threads": "--workers"},
}
NUMBERS = (int, float, options.number, options.positive, options.fraction)


def parsers() -> dict[str, argparse.ArgumentParser]:
    pytest.importorskip("rclpy", reason="needs ROS 2", exc_type=ImportError)
    return {name: command.argument_parser() for name, command in COMMANDS.items()}


def test_old_names_are_those_of_this_table() -> None:
    found = {name: dict(getattr(parser, "old_names", {})) for name, parser in parsers().items()}
    assert {name: names for name, names in found.items() if names} == OLD_NAMES


@pytest.mark.parametrize("command", OLD_NAMES)
def test_old_name_means_the_new_one_and_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in OLD_NAMES[command].items():
        parser = options.parser(command, "", {old: new})
        parser.add_argument(new)
        values = [parser.parse_args(words) for words in ([new, "7"], [old, "7"], [f"{old}=7"])]
        assert values[0] == values[1] == values[2]
        assert capsys.readouterr().err == f"anomseg: the option {old} is now {new}\n" * 2
        actions = COMMANDS[command].argument_parser()._option_string_actions
        assert new in actions and (old not in actions or command == "calibrate threshold")


@pytest.mark.parametrize("words", [["run", "--bundle", "X", "in.png"], ["evaluate", "--bundle=X"]])
def test_a_bundle_given_as_an_option_gets_the_right_form(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"; bundle is given without --bundle, as in: anomseg {words[0]} " in error


def test_height_and_width_are_the_sides_of_size(capsys: pytest.CaptureFixture[str]) -> None:
    parser = options.parser("export", "")
    options.add_input_size(parser, (512, 1024))
    assert parser.parse_args([]).size == (512, 1024)
    assert parser.parse_args(["--size", "64x128"]).size == (64, 128)
    assert not capsys.readouterr().err
    assert parser.parse_args(["--height", "64"]).size == (64, 1024)
    assert parser.parse_args(["--width", "256", "--height", "64"]).size == (64, 256)
    assert "the option --height is now a side of --size" in capsys.readouterr().err
    assert "--height" not in parser.format_help()


@pytest.mark.parametrize("text", ["512", "x", "0x5", "5x0", "5x-1", "512x1024x3", "ax5"])
def test_a_size_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = options.parser("export", "")
    options.add_input_size(parser, (512, 1024))
    with pytest.raises(SystemExit):
        parser.parse_args(["--size", text])
    assert "expected HEIGHTxWIDTH" in capsys.readouterr().err


def test_option_of_one_name_is_a_number_everywhere_or_nowhere() -> None:
    kinds: dict[str, dict[str, bool]] = defaultdict(dict)
    for command, parser in parsers().items():
        for name, action in parser._option_string_actions.items():
            is_list = command == "calibrate threshold" and name.startswith("--target-")  # of comma-separated numbers
            if action.nargs not in (0, "+") and not is_list:
                kinds[name][command] = action.type in NUMBERS
    assert {name: found for name, found in kinds.items() if len(set(found.values())) > 1} == {}


def test_bundle_that_is_needed_comes_first_and_others_have_an_option() -> None:
    for command, parser in parsers().items():
        places = [action.dest for action in parser._actions if not action.option_strings]
        bundles = [name for name in places if "bundle" in name]
        has_option = "--bundle" in parser._option_string_actions
        assert not (bundles and has_option), command
        assert not bundles or places[0] == bundles[0] or command == "compress", command  # a recipe for a bundle


def test_bundle_after_the_bags_is_accepted_with_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["bag", "evaluate", "nothing.mcap", "enet-synthetic"]) == 1
    told = capsys.readouterr().err
    assert "the bundle is now given first" in told and "nothing.mcap" in told
