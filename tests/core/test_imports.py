"""The core imports no I/O, no clock and no randomness, and nothing that does."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import reattach.core

CORE = Path(reattach.core.__path__[0])
PACKAGE = CORE.parent
# What the core may use of the rest of the package: plain data, and errors.
DATA = {"reattach.errors", "reattach.wire", "reattach.store.base", "reattach.store.seating"}
# A few modules of the standard library that only compute, and two libraries: one encodes, one
# compares texts.
PURE = {
    "__future__",
    "collections",
    "bisect",
    "diff_match_patch",
    "copy",
    "enum",
    "functools",
    "hashlib",
    "json",
    "math",
    "msgspec",
    "re",
    "typing",
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_the_core_imports_only_what_is_pure() -> None:
    files = [*CORE.glob("*.py"), *(PACKAGE / f"{name[9:].replace('.', '/')}.py" for name in DATA)]
    assert len(files) > 10
    for file in files:
        for name in imports(file):
            mine = name.startswith("reattach.core.") or name in DATA
            assert mine or name.split(".")[0] in PURE, f"{file.name} imports {name}"


def test_the_core_awaits_nothing() -> None:
    for file in CORE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), file.name


def test_importing_the_core_brings_no_io_along() -> None:
    code = "import sys, reattach.core.room as r; print(' '.join(sys.modules))"
    source = f"import types,sys;p=types.ModuleType('reattach');p.__path__=[{str(PACKAGE)!r}];"
    result = subprocess.run(
        [sys.executable, "-c", f"{source}sys.modules['reattach']=p;{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(result.stdout.split())
    assert not loaded & {"asyncio", "socket", "sqlite3", "random", "uvicorn", "fastapi"}
