"""A session's schema with every shape that `reattach types` writes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel

from reattach.schema import Max, SessionModel, Step, Text

Value = TypeVar("Value")


class Stage(Enum):
    """How far a review has come."""

    DRAFT = "draft"
    DONE = "done"


class Comment(BaseModel):
    """What somebody said, and what was said to that."""

    id: str
    text: str = ""
    replies: list[Comment] = []
    about: Comment | None = None


class Mark(BaseModel):
    kind: Literal["mark"]
    at: tuple[int, int]


class Stroke(BaseModel):
    kind: Literal["stroke"]
    points: list[tuple[float, float]] = []


class Shape(RootModel[Annotated[Mark | Stroke, Field(discriminator="kind")]]):
    """Something drawn."""


class Rated(BaseModel, Generic[Value]):
    value: Value
    stars: Literal[1, 2, 3] = 3


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")

    source: str = ""


class Review(SessionModel):
    """The state of a review.

    A paragraph that is longer than a line of TypeScript may be, so that it has to go on in another
    one. An end of comment: */
    """

    title: Annotated[str, Text()]
    stage: Stage = Stage.DRAFT
    step: Annotated[int, Max(), Step(), Field(ge=0, description="Counts from 0.")] = 0
    comments: list[Comment] = []
    shapes: dict[str, Shape] = {}
    rated: Rated[int] | None = None
    loose: Loose = Loose()
    seen: dict[Stage, bool] = {}
    notes: dict[str, dict[str, list[int | None]]] = {}
    extra: Any = None
    many: list[Any] = []
    answer: int | str | None = None
    half_typed: Annotated[str, Field(alias="half-typed")] = ""
    old: Annotated[str, Field(deprecated=True)] = ""


class Tree(BaseModel):
    branches: dict[str, Tree] = {}
