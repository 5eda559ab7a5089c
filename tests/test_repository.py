"""What is true of the files themselves, whoever checks them out and wherever."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

NOT_OURS = {
    ".cache",
    ".git",
    ".hypothesis",
    ".venv",
    "__pycache__",
    "dist",
    "node_modules",
    "pages",
    "var",
}
# In pieces, so that this file does not name what no file may name.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("npmmirror", "com"),
        ("files", "pythonhosted", "org"),
        ("pypi", "org"),
    )
]
HOMES = re.compile(r"(?<![\w.~-])/(?:home|Users)/[a-z]\w*/|(?<![\w.~-])/root/")


def texts() -> Iterator[tuple[Path, str]]:
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.name in NOT_OURS:
                continue
            if path.is_dir():
                folders.append(path)
                continue
            try:
                yield path.relative_to(ROOT), path.read_text()
            except UnicodeDecodeError:
                continue


def test_no_file_names_a_registry() -> None:
    found = [(path, host) for path, text in texts() for host in REGISTRIES if host in text]
    assert found == []


def test_no_file_names_a_path_of_one_machine() -> None:
    checkout = re.compile(rf"(?<![\w.~-]){re.escape(str(ROOT))}(?![\w-])")
    looks = [HOMES]
    # A checkout right below the root may be called what a route of ours is called.
    if len(ROOT.parts) > 2:
        looks.append(checkout)
    this = Path(__file__).relative_to(ROOT)
    found = [
        (path, match[0])
        for path, text in texts()
        if path != this
        for look in looks
        for match in look.finditer(text)
    ]
    assert found == []


def test_the_lock_says_what_and_not_from_where() -> None:
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    # A workspace's own package is a link, whose "resolved" is its folder in the checkout.
    addresses = [name for name, entry in packages.items() if "://" in entry.get("resolved", "")]
    assert addresses == []


def test_the_lock_holds_every_platform() -> None:
    """`npm ci` refuses a lock that lacks another platform's binaries."""
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    names = {key.rpartition("node_modules/")[2] for key in packages}
    missing = {
        optional
        for entry in packages.values()
        for optional in entry.get("optionalDependencies", {})
        if optional not in names
    }
    assert missing == set()


def test_the_lock_is_that_of_the_packages() -> None:
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    manifests = [ROOT / "package.json"]
    manifests += [*ROOT.glob("packages/*/package.json"), *ROOT.glob("examples/*/web/package.json")]
    for manifest in manifests:
        folder = manifest.parent.relative_to(ROOT).as_posix()
        entry = packages.get("" if folder == "." else folder)
        assert entry is not None, f"{folder} is not in package-lock.json: run `make lock`"
        declared = json.loads(manifest.read_text())
        for kind in ("dependencies", "devDependencies", "peerDependencies"):
            assert declared.get(kind, {}) == entry.get(kind, {}), f"{folder}: run `make lock`"


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin)] == []


@pytest.mark.parametrize(
    "folder", ["client", "core", "store", "server", "faults", "browser", "simulation"]
)
def test_every_folder_of_tests_is_a_package(folder: str) -> None:
    assert (ROOT / "tests" / folder / "__init__.py").is_file()
