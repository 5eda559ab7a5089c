"""The snippets about schemas run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from reattach.schema import ModelSchema
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "schemas.md").read_text()


def run(source: str, names: dict[str, Any]) -> None:
    code = compile(source, "schemas.md", "exec", dont_inherit=True)
    exec(code, names)  # noqa: S102 - that it runs is what is tested


async def test_the_pages_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(sources) == 5
    names: dict[str, Any] = {"__name__": "docs"}
    run(sources[0], names)
    async with names["reattach"] as reattach:
        for source in sources[1:4]:
            body = "\n".join(f"    {line}" for line in source.splitlines())
            run(f"async def main():\n{body}\n", names)
            await names["main"]()
        found = await reattach.sessions.get("draft-7")
    assert found.state["notes"] == "to begin withOnce upon a time"
    assert found.state["budget"] == 0
    run(sources[4], names)
    assert ModelSchema(names["Draft"]).oldest == 3
