"""The snippets about the Python client run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "python-client.md").read_text()
README = (ROOT / "README.md").read_text()


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


async def run(source: str, names: dict[str, Any]) -> None:
    body = "\n".join(f"    {line}" for line in source.splitlines())
    text = f"async def main(url):\n    from reattach.client import connect\n{body}\n"
    exec(text, names)  # noqa: S102 - that it runs is what is tested
    await names["main"](names["url"])


async def test_the_pages_snippets_run_one_after_the_other(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = await serve(app=None)
    monkeypatch.chdir(tmp_path)
    sources = snippets(PAGE)
    assert len(sources) == 6
    for source in sources:
        await run(source, {"url": server.url})
    assert "'visits': 0" in capsys.readouterr().out
    await run(
        'async with connect(url, "draft-7") as session:\n    print(session.state)',
        {"url": server.url},
    )
    state = eval(capsys.readouterr().out)  # noqa: S307 - what was just printed
    assert state == {
        "visits": 4,
        "answer": "Nothing is lost.",
        "items": [{"id": "i1", "title": "Milk", "done": True}],
        "title": "Minutes",
    }


async def test_the_readmes_snippet_runs(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(app=None)
    monkeypatch.chdir(tmp_path)
    (source,) = (one for one in snippets(README) if "reattach.client" in one)
    names: dict[str, Any] = {}
    exec(source.replace("https://example.org/sessions", server.url), names)  # noqa: S102 - as above
    await names["answer"](["Nothing", " is", " lost."])
