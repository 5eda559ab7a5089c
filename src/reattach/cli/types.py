"""``reattach types``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reattach.cli.finding import find, kind
from reattach.cli.output import Exit, Refused, ending

__all__ = ["types"]


def types(
    model: Annotated[
        str,
        typer.Argument(help="The model of a session's state, as package.module:Model."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write this file, in place of the standard output."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing, and fail where the file is not up to date."),
    ] = False,
) -> None:
    """Write the TypeScript of a session's schema, for connect<State>() and the hooks."""
    with ending():
        _write_types(model, output, check=check)


def _write_types(model: str, output: Path | None, *, check: bool) -> None:
    from pydantic import BaseModel

    from reattach.typescript import of_model

    if check and output is None:
        raise Refused("expected a file to check: name it with --output", Exit.WRONG)
    found = find(model, "package.module:Model")
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise Refused(f"expected {model} to be a pydantic model, got {kind(found)}", Exit.WRONG)
    head = f"// Made by: reattach types {model}\n// Change the model, and make it anew.\n\n"
    made = head + of_model(found)
    try:
        if output is None:
            typer.echo(made, nl=False)
        elif not check:
            output.write_text(made, encoding="utf-8")
        elif not output.exists() or output.read_text(encoding="utf-8") != made:
            raise Refused(
                f"expected {output} to be what {model} says, and it is not: run reattach types"
                f" {model} --output {output}"
            )
    except OSError as error:
        raise Refused(f"cannot use {output}: {error.strerror}") from None
