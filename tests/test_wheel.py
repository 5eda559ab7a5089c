"""The wheel works for somebody who has Python and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve
from tests.support.paths import ROOT

EXAMPLE = "reattach/examples/gap_resolution"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout, as `make wheel` does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    built = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_carries_the_built_pages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    pages = ROOT / "examples" / "gap_resolution" / "pages"
    built = {page.relative_to(pages).as_posix() for page in pages.rglob("*") if page.is_file()}
    carried = {
        name.removeprefix(f"{EXAMPLE}/pages/")
        for name in names
        if name.startswith(f"{EXAMPLE}/pages/")
    }
    assert "index.html" in built
    assert carried == built
    inspector = ROOT / "src" / "reattach" / "server" / "inspector" / "pages"
    parts = {page.relative_to(ROOT / "src").as_posix() for page in inspector.rglob("*.*")}
    assert len(parts) >= 4
    assert parts <= set(names)
    assert f"{EXAMPLE}/app.py" in names
    assert "reattach/py.typed" in names
    assert len(names) == len(set(names))
    assert [name for name in names if "node_modules" in name or "/web/" in name] == []


async def test_the_wheel_serves_its_page_without_node(
    wheel: Path, serve: Serve, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = "from reattach.cli import main; main()"
    # Found before the editable install, in a folder where the checkout cannot be imported from.
    server = await serve(
        command=(sys.executable, "-P", "-c", program),
        app="reattach.examples.gap_resolution.app:reattach",
        environment={"PYTHONPATH": str(site), "PATH": os.devnull},
        cwd=tmp_path,
    )
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        page = await client.get("/")
    assert page.status_code == 200
    assert page.text == (site / EXAMPLE / "pages" / "index.html").read_text()
