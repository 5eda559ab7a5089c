"""Writes the commands and options in docs/cli.md as the program itself tells them.

python tools/cli_reference.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from typer.main import get_command

from reattach.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
BEGIN = "<!-- Made by: python tools/cli_reference.py -->\n"
END = "<!-- to here -->\n"


def reference() -> str:
    """The commands, in the order of `reattach --help`."""
    return "\n".join(_command("reattach", get_command(main)))


def page(text: str) -> str:
    """A page with the reference in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


def _command(name: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is not None:
        for one, below in inner.items():
            yield from _command(f"{name} {one}", below)
        return
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    names = [one.metavar or one.name.upper() for one in arguments]
    yield f"### {' '.join([name, *names])}\n"
    for paragraph in command.help.split("\n\n"):
        yield " ".join(paragraph.split()) + "\n"
    yield "| | |\n| --- | --- |"
    for argument, shown in zip(arguments, names, strict=True):
        yield f"| `{shown}` | {_help(argument)} |"
    for option in command.params:
        if option.param_type_name == "option":
            yield f"| `{_option(option)}` | {_help(option)} |"
    yield ""


def _option(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len, reverse=True))
    if option.is_flag:
        return names
    kind = option.type_descriptor.annotation
    if option.metavar is not None:
        return f"{names} {option.metavar}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"{names} {'/'.join(one.value for one in kind)}"
    return f"{names} {_KINDS.get(kind, 'TEXT')}"


_KINDS = {int: "NUMBER", Path: "FILE"}


def _help(parameter: Any) -> str:
    text = " ".join(parameter.help.split())
    default = parameter.default
    if parameter.show_default is not False and default not in {None, False}:
        text += f" [default: {default.value if isinstance(default, Enum) else default}]"
    return text.replace("|", "\\|")


if __name__ == "__main__":
    there = PAGE.read_text(encoding="utf-8")
    made = page(there)
    if "--check" in sys.argv:
        if there != made:
            sys.exit(f"{PAGE} is not what the program tells: run python tools/cli_reference.py")
    else:
        PAGE.write_text(made, encoding="utf-8")
