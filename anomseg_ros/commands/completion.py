"""`anomseg completion`: print the completion script of a shell."""

from __future__ import annotations

import argparse

import shtab

from anomseg_ros.command_table import COMMANDS
from anomseg_ros.commands import options

SHELLS = ("bash", "zsh", "fish", "tcsh")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg completion`."""
    parser = options.parser(
        "completion",
        "Print the script with which a shell completes commands, options, choices and paths. Commands whose packages "
        "are not installed have no options in it.",
    )
    parser.add_argument("shell", choices=SHELLS, help="your shell")
    return parser


def main(argv: list[str]) -> int:
    """Print the script; return 0."""
    args = argument_parser().parse_args(argv)
    print(shtab.complete(root_parser(), args.shell))
    return 0


def root_parser() -> argparse.ArgumentParser:
    """Return one parser with every command as a subcommand, `models list` as `list` of `models`."""
    root = argparse.ArgumentParser(prog="anomseg")
    root.add_argument("--version", action="store_true", help="print the version")
    families = {"": root.add_subparsers()}
    for name, command in COMMANDS.items():
        family, _, last = name.rpartition(" ")
        if family not in families:
            families[family] = families[""].add_parser(family, help=f"{family} …").add_subparsers()
        subparser = families[family].add_parser(last, help=command.summary)
        for action in _actions(name):
            subparser._add_action(action)
    return root


def _actions(name: str) -> list[argparse.Action]:
    """Return the arguments of a command with what completes them; none if its packages are not installed."""
    try:
        actions = COMMANDS[name].argument_parser()._actions
    except ModuleNotFoundError:
        return []
    shown = [action for action in actions if action.help != argparse.SUPPRESS and "--help" not in action.option_strings]
    for action in shown:
        if action.nargs != 0 and not action.choices:
            is_folder = action.type is options.output_folder
            action.complete = shtab.DIRECTORY if is_folder else shtab.FILE  # type: ignore[attr-defined]
    return shown
