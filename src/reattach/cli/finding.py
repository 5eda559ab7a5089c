"""What is served: the application that is named, or the settings alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reattach.cli.output import Exit, Refused

if TYPE_CHECKING:
    from reattach.server.app import Reattach
    from reattach.settings import Settings

__all__ = ["find", "kind", "load", "settings_of"]


def load(app: str | None, database: str | None, auth: str | None = None) -> Reattach:
    """Return what is to be served; raises `Refused` where that cannot be."""
    from reattach.server.app import Reattach

    if app is None:
        said = {} if auth is None else {"auth": auth}
        return Reattach(database=database, settings=_settings(said))
    served = _import(app)
    if auth == "jwt":
        served.use_tokens()
    if database is not None:
        served.use_database(database)
    return served


def settings_of(app: str | None, database: str | None) -> Settings:
    """Return the settings of what is served, without making a server of them if need not be."""
    if app is not None:
        return load(app, database).settings
    return _settings({} if database is None else {"database": database})


def _settings(said: dict[str, Any]) -> Settings:
    from pydantic import ValidationError

    from reattach.settings import Settings

    try:
        return Settings.model_validate(said)
    except ValidationError as error:
        raise _unset(error) from None


def _import(name: str) -> Reattach:
    from pydantic import ValidationError

    from reattach.server.app import Reattach

    try:
        found = find(name, "--app package.module:attribute")
    except ValidationError as error:
        raise _unset(error) from None
    if not isinstance(found, Reattach):
        raise Refused(f"expected {name} to be a Reattach, got {kind(found)}: see --app", Exit.WRONG)
    return found


def _unset(error: Any) -> Refused:
    first = error.errors(include_url=False, include_input=False)[0]
    name = "REATTACH_" + "_".join(str(part) for part in first["loc"]).upper()
    return Refused(f"{name}: {first['msg']}", Exit.WRONG, "bad_setting")


def find(name: str, expected: str) -> object:
    """Return what an import string names, None where its module has no such thing."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise Refused(f"expected {expected}, got {name!r}", Exit.WRONG)
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there and wants something that is not: its traceback says what
        raise Refused(
            f"there is no module {module_name!r} (No module named {error.name!r}), looked for in"
            f" {Path.cwd()} and among what is installed: expected {expected}",
            Exit.WRONG,
        ) from None
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    return found


def kind(found: object) -> str:
    """Say what was found in place of what was expected."""
    return "nothing" if found is None else f"an object of type {type(found).__name__}"
