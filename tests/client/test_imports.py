"""The client's core imports no I/O, no clock and no randomness; its public names are there."""

from __future__ import annotations

import ast

import reattach.client
from tests.core.test_imports import PACKAGE, PURE, imports

PURE_MODULES = ("carrying", "core", "effects", "ledger", "line", "ops", "outbox", "replica")
CLIENT = PACKAGE / "client"


def test_the_core_imports_only_what_is_pure() -> None:
    mine = {f"reattach.client.{name}" for name in PURE_MODULES}
    for name in PURE_MODULES:
        for imported in imports(CLIENT / f"{name}.py"):
            known = imported in mine | {"reattach.errors", "reattach.wire", "reattach.client"}
            pure = imported.split(".")[0] in PURE | {"itertools"}
            assert known or pure or imported.startswith("reattach.core."), f"{name}: {imported}"


def test_the_core_awaits_nothing() -> None:
    for name in PURE_MODULES:
        for node in ast.walk(ast.parse((CLIENT / f"{name}.py").read_text())):
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), name


def test_the_public_names_are_there() -> None:
    assert all(hasattr(reattach.client, name) for name in reattach.client.__all__)
    assert all(getattr(reattach.client, name).__doc__ for name in reattach.client.__all__)
