"""What a document's session holds, and how it merges what several devices wrote at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field

from reattach import SessionModel
from reattach.schema import Ask, Max, Step, Text

__all__ = ["GapResolution"]

Json: TypeAlias = Any


class Gap(BaseModel):
    """One place that is missing or wrong, and the form that asks for it."""

    id: str
    path: str
    title: str
    description: str
    kind: str
    form: dict[str, Json] = Field(alias="schema")
    problem: str | None
    """What is wrong; None when nothing is."""
    checked: Json
    """The answer that ``problem`` speaks of."""
    optional: bool = False
    found: str | None = None
    examples: list[str] | None = None


class Response(BaseModel):
    """What people say to one gap."""

    id: str
    gap: str
    draft: Json
    """What is being typed. Texts are typed as splices, so that several can type into one."""
    answer: Annotated[Json, Ask()]
    """What counts. Of two that were given apart, people choose."""


class Resolved(BaseModel):
    """A gap that is settled."""

    id: str
    path: str
    title: str
    answer: Json


class Context(BaseModel):
    """The document: as it was, and as it is with the answers in it."""

    kind: Literal["citation", "pyproject", "own"]
    own: dict[str, Json] | None = None
    """Somebody's own JSON schema, where the document is of that."""
    syntax: Literal["yaml", "toml", "json"]
    document_name: str
    format: str
    source: dict[str, Json]
    original: str
    document: str
    valid: bool


class GapResolution(SessionModel):
    """A document whose gaps are being resolved."""

    # Whoever went on furthest leads.
    current_step: Annotated[int, Max(), Step()] = 0
    total_steps: int = 0
    gaps_detected: list[Gap] = Field(default_factory=list)
    gaps_resolved: list[Resolved] = Field(default_factory=list)
    user_responses: list[Response] = Field(default_factory=list)
    # For everybody on the document: all that is typed at once ends up in it.
    notes: Annotated[str, Text()] = ""
    context: Context
