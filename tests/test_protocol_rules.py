"""Every numbered rule of `docs/protocol.md` has a test that names it, and none is made up."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
RULE = re.compile(r"\*\*([A-Z]{1,2}[0-9]{1,2})\*\*")
NAMED = re.compile(r"\b([A-Z]{1,2}[0-9]{1,2})\b")


def rules() -> dict[str, bool]:
    """The rules of the page, and whether each is in this version of the server."""
    found: dict[str, bool] = {}
    text = (ROOT / "docs" / "protocol.md").read_text()
    for block in re.split(r"\n(?=- |\||\n)", text):
        names = RULE.findall(block)
        for name in names:
            assert name not in found, f"rule {name} stands twice"
            found[name] = not block.rstrip().endswith("†")
    return found


def named_by_tests() -> set[str]:
    sources = [
        *(ROOT / "tests").rglob("test_*.py"),
        *(ROOT / "packages").glob("*/test/**/*.test.ts"),
    ]
    return {
        name
        for source in sources
        for line in source.read_text().splitlines()
        if source.suffix == ".ts" or re.search(r'[Rr]ule|"""|# ', line)
        for name in NAMED.findall(line)
    }


def test_every_rule_has_a_test_that_names_it() -> None:
    assert len(rules()) > 80
    untested = sorted({name for name, here in rules().items() if here} - named_by_tests())
    assert not untested, f"no test names the rules {', '.join(untested)}"
