"""The document that simulated users work on, with a schema that has a field for every policy."""

from __future__ import annotations

from typing import Annotated, Any

from reattach.schema import Ask, First, Max, Min, SessionModel, Text, Union

__all__ = ["START", "Paper"]


class Paper(SessionModel):
    """What a session is created with; half of the seeds know it as their schema."""

    title: str = ""
    n: int = 0
    counters: dict[str, int] = {}
    form: dict[str, Any] = {"a": "", "b": "", "group": {"x": "", "y": ""}}
    items: list[dict[str, Any]] = [
        {"id": "i1", "v": "", "tags": {}},
        {"id": "i2", "v": "", "tags": {}},
    ]
    plain: list[str] = []
    text: str = ""
    notes: dict[str, str] = {"first": ""}
    asked: Annotated[str, Ask()] = ""
    first: Annotated[str, First()] = ""
    most: Annotated[int, Max()] = 0
    least: Annotated[int, Min()] = 1_000
    all: Annotated[list[str], Union()] = []
    memo: Annotated[str, Text()] = ""
    letter: str = "Dear reader, nothing of this is ever changed. " * 30


START: dict[str, Any] = Paper().model_dump()
"""The state that a session begins with."""
