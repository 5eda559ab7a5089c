"""The README's snippets run, and what it links to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reattach import Reattach

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
async def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    """The names of the first snippet, run as it stands in an empty folder, and served."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippets("python")[0], names)  # noqa: S102 - that it runs is what is tested
    async with names["lifespan"](names["app"]):
        yield names


async def test_the_server_is_mounted_as_the_readme_says(mounted: dict[str, Any]) -> None:
    transport = httpx.ASGITransport(mounted["app"])
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        body = {"session_id": "draft-7", "state": {"title": ""}}
        answer = await client.post("/sessions/api/v0/session", json=body)
        assert answer.status_code == 201, answer.text


async def test_the_server_writes_and_follows_as_the_readme_says(
    mounted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    reattach: Reattach = mounted["reattach"]
    await reattach.sessions.create({"visits": 0}, user_id="local", session_id="draft-7")
    lines = snippets("python")[1].replace("after=commit.version", "after=0").splitlines()
    # The loop goes on for ever: it is left after its first commit.
    source = "\n".join(f"    {line}" for line in [*lines, "    break"])
    exec(f"async def main(reattach):\n{source}", mounted)  # noqa: S102 - as above
    await mounted["main"](reattach)
    assert capsys.readouterr().out.startswith("1 [{'op': 'replace', 'path': '/visits', 'value': 1}")


SCHEMAS = (ROOT / "docs" / "schemas.md").read_text()


@pytest.mark.parametrize("page", [README, SCHEMAS], ids=["README", "schemas"])
def test_the_typescript_has_the_right_types(page: str) -> None:
    (snippet,) = re.findall(r"```ts\n(.*?)```", page, re.DOTALL)
    folder = ROOT / ".cache" / "readme"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "snippet.ts").write_text(snippet)
    (folder / "tsconfig.json").write_text(
        '{"extends": "../../tsconfig.base.json", "compilerOptions": {"noEmit": true,'
        ' "lib": ["ES2022", "DOM"], "types": []}, "include": ["snippet.ts"]}'
    )
    tsc = ROOT / "node_modules" / "typescript" / "bin" / "tsc"
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "node.py", "node", tsc, "-p", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_the_documents_link_to_is_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
