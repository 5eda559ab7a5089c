"""Every rule of `docs/protocol.md` that says what a client does has a test here that names it."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent

RULES = [
    *("V1", "V2", "V3", "V4", "V5", "P1", "P3", "P4", "C1", "C2", "W2", "W3", "W4"),
    *("O1", "O2", "O3", "O4", "O5", "O6", "O7", "O9"),
    *("X2", "X3", "X4", "X5", "X6", "B1", "B2", "B3", "B4", "B5", "B6", "E1", "R1", "R2"),
    *("F1", "F2", "F3", "L1", "L2", "L3", "L4", "L7", "L8", "L9", "H1", "H2"),
    *("TX1", "TX2", "TX3", "TX4", "TX5", "TX6"),
]


def test_every_rule_that_concerns_a_client_has_a_test_that_names_it() -> None:
    named = {
        name
        for file in HERE.glob("test_*.py")
        for line in re.findall(r'"""Rules? [^"]*"""', file.read_text())
        for name in re.findall(r"\b[A-Z]{1,2}[0-9]{1,2}\b", line)
    }
    assert sorted(set(RULES) - named) == []
