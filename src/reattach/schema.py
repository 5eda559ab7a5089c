"""Session schemas: a pydantic model says what a state may be, its annotations how writes merge.

    class GapResolution(SessionModel):
        current_step: Annotated[int, Max(), Step()] = 0
        user_responses: list[Response] = []
        notes: Annotated[str, Text()] = ""
        budget: Annotated[int, Ask()] = 0

    reattach = Reattach(schemas=[GapResolution])

A change whose result does not fit is refused with the path and pydantic's reason. Values are
checked strictly, as JSON, and never altered. Only what a change wrote is validated: the field
itself, and what lies around it as far as that has validators of its own.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar, cast

import msgspec
from annotated_types import MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from reattach.core.paths import Path, join, parse
from reattach.core.policy import ANY, Field, Policy
from reattach.core.schema import Rename, rename_in
from reattach.errors import ChangeRefused

__all__ = [
    "Ask",
    "First",
    "Latest",
    "Max",
    "Min",
    "ModelSchema",
    "SessionModel",
    "Step",
    "Text",
    "Union",
    "upgrade",
]

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes a state of one version to one of the next; it may alter the state that it is given."""

Static = TypeVar("Static")


@dataclasses.dataclass(frozen=True)
class _Marker:
    policy: ClassVar[str]


class Latest(_Marker):
    """Of concurrent values the one whose user acted last stands; the other is kept. The default."""

    policy = Policy.LATEST


class First(_Marker):
    """Of concurrent values the one committed first stands; the later is kept."""

    policy = Policy.FIRST


class Max(_Marker):
    """Of concurrent values the greater stands."""

    policy = Policy.MAX


class Min(_Marker):
    """Of concurrent values the smaller stands."""

    policy = Policy.MIN


class Union(_Marker):
    """Concurrent lists and objects end as all that is in either."""

    policy = Policy.UNION


class Text(_Marker):
    """Concurrent edits of a text are merged; what cannot be placed is kept."""

    policy = Policy.TEXT


class Ask(_Marker):
    """The committed value stands, and a person is asked to choose between it and the other."""

    policy = Policy.ASK


@dataclasses.dataclass(frozen=True)
class Step:
    """Marks the field that tells which step of its work a session is at."""


def upgrade(version: int) -> Callable[[Static], Static]:
    """Mark a static method of a schema that makes states of the version before to ``version``."""

    def mark(method: Static) -> Static:
        if not isinstance(method, staticmethod):
            raise TypeError("expected @upgrade above @staticmethod: a state comes in, one goes out")
        return cast("Static", _Upgrade(method.__func__, version))

    return mark


if typing.TYPE_CHECKING:
    _Static = staticmethod[..., Any]
else:
    _Static = staticmethod


class _Upgrade(_Static):
    """A static method that makes states of one version to the next."""

    def __init__(self, function: Upgrade, version: int) -> None:
        super().__init__(function)
        self.version = version


class SessionModel(BaseModel):
    """The base of session schemas. What a field's default is, a new session's state has.

    ``schema_name`` is the class's name if it is not given. Count ``schema_version`` up with each
    change of the shape, say in ``renames`` what is called otherwise from a version on, by pointers
    (``*`` is any key or element), and mark with `upgrade` what else is to be done::

        class Draft(SessionModel):
            schema_version = 3
            renames = {2: {"/answers/*/text": "/answers/*/answer"}}

            @upgrade(3)
            @staticmethod
            def _count(state: dict[str, Any]) -> dict[str, Any]:
                return {**state, "count": len(state["answers"])}
    """

    model_config = ConfigDict(extra="forbid")

    schema_name: ClassVar[str | None] = None
    schema_version: ClassVar[int] = 1
    renames: ClassVar[Mapping[int, Mapping[str, str]]] = {}


_LISTS = (list, set, frozenset, tuple, Sequence)


class _Spot(Field):
    """A place in a schema with what a value there must be."""

    __slots__ = ("_adapter", "alone", "closed", "least", "most", "needed", "type")

    def __init__(self, kind: Any, policy: str) -> None:
        super().__init__(policy)
        self.type = kind
        self.alone = True
        """Whether what lies in it can be checked without it."""
        self.closed = False
        """Whether it is an object that has no other keys than its fields."""
        self.needed = False
        """Whether the object around it must have it."""
        self.least = 0
        self.most: int | None = None
        self._adapter: TypeAdapter[Any] | None = None

    def check(self, value: Any) -> None:
        if self._adapter is None:
            self._adapter = TypeAdapter(self.type)
        self._adapter.validate_json(msgspec.json.encode(value), strict=True)

    def child(self, token: str) -> _Spot | None:
        found = self.fields.get(token) or self.fields.get(ANY)
        return found if isinstance(found, _Spot) else None


class ModelSchema:
    """The schema that a model describes, for the core (`reattach.core.schema.Schema`)."""

    def __init__(self, model: type[SessionModel]) -> None:
        self.model = model
        self.name = model.schema_name or model.__name__
        self.version = model.schema_version
        self.step: Path | None = None
        self._fields_of: dict[Any, dict[str, Field]] = {}
        self._root = self._spot(model, (), ())
        self.fields: Field = self._root
        self.renames: Mapping[int, Sequence[Rename]] = {
            version: [_rename(model, old, new) for old, new in names.items()]
            for version, names in model.renames.items()
        }
        self._upgrades: dict[int, Upgrade] = {}
        for base in reversed(model.__mro__):
            for value in vars(base).values():
                if isinstance(value, _Upgrade):
                    self._upgrades[value.version] = value.__func__
        newest = max([1, *self.renames, *self._upgrades])
        if newest > self.version:
            raise TypeError(
                f"expected {model.__name__}.schema_version to be at least {newest}, as its renames"
                f" and upgrades are, got {self.version}"
            )
        self.oldest = max([1, *self._upgrades])

    # What the core asks for

    def check(self, state: dict[str, Any], paths: Iterable[Path]) -> None:
        """Raise `ChangeRefused` (``schema_mismatch``) where a state does not fit at some paths."""
        for path in set(paths):
            self._check(state, path)

    def begin(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a new session's state: the given one, and the defaults of what it lacks."""
        complete: dict[str, Any] = _complete(self.model, state)
        self._check(complete, ())
        return complete

    def upgrade(self, state: dict[str, Any], version: int) -> dict[str, Any]:
        """Return a state of an earlier version as it is in this one."""
        for later in range(version + 1, self.version + 1):
            for old, new in self.renames.get(later, ()):
                state = rename_in(state, old, new)
            function = self._upgrades.get(later)
            if function is not None:
                state = function(state)
        return self.begin(state)

    def _check(self, state: dict[str, Any], path: Path) -> None:
        spot = self._root
        value: Any = state
        done: list[str] = []
        for token in path:
            inner = spot.child(token)
            there, found = _look(value, token)
            if type(value) is list or (type(value) is dict and not spot.closed):
                _check_length(spot, value, done)
            if not spot.alone or type(value) not in {list, dict}:
                break
            if inner is None:
                if there and spot.closed:
                    raise _mismatch([*done, token], "Extra inputs are not permitted")
                if spot.fields or spot.closed:
                    return
                break
            if not there:
                if inner.needed:
                    raise _mismatch([*done, token], "Field required")
                return
            spot, value = inner, found
            done.append(token)
        try:
            spot.check(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            named = _named(value, done, first["loc"], missing=first["type"] == "missing")
            raise _mismatch(named, first["msg"]) from None

    # Reading a model

    def _spot(self, kind: Any, metadata: Sequence[Any], path: Path) -> _Spot:
        bare, inner = _unwrapped(kind)
        metadata = [*metadata, *inner]
        policy = Policy.LATEST
        for mark in metadata:
            if isinstance(mark, _Marker):
                policy = mark.policy
            elif isinstance(mark, Step):
                self.step = path
        spot = _Spot(Annotated[(kind, *metadata)] if metadata else kind, policy)
        own = [mark for mark in metadata if not isinstance(mark, _Marker | Step)]
        for mark in own:
            if isinstance(mark, MinLen):
                spot.least = mark.min_length
            elif isinstance(mark, MaxLen):
                spot.most = mark.max_length
            else:
                spot.alone = False
        self._fill(spot, bare, path)
        return spot

    def _fill(self, spot: _Spot, kind: Any, path: Path) -> None:
        """Give a spot its fields, by its type without annotations."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            self._fill_model(spot, kind, path)
        elif origin in _LISTS and arguments:
            if origin is not tuple or arguments[1:] == (Ellipsis,):
                spot.fields[ANY] = self._spot(arguments[0], (), (*path, ANY))
        elif origin in {dict, Mapping} and len(arguments) == 2:
            spot.fields[ANY] = self._spot(arguments[1], (), (*path, ANY))
        elif origin in {typing.Union, types.UnionType}:
            branches = [one for one in arguments if one is not type(None)]
            for branch in branches:
                inner = self._spot(branch, (), path)
                if spot.policy == Policy.LATEST:
                    spot.policy = inner.policy
                for token, field in inner.fields.items():
                    spot.fields.setdefault(token, field)
                if len(branches) == 1:
                    bounded = inner.least > 0 or inner.most is not None
                    spot.alone = spot.alone and inner.alone and not bounded
                    spot.closed = inner.closed
            if len(branches) > 1:
                spot.alone = False

    def _fill_model(self, spot: _Spot, model: type[BaseModel], path: Path) -> None:
        decorators = model.__pydantic_decorators__
        spot.closed = model.model_config.get("extra") == "forbid"
        if (
            decorators.model_validators
            or decorators.root_validators
            or decorators.field_validators
            or decorators.validators
        ):
            # They belong to the model: have it run them.
            spot.alone = False
        known = self._fields_of.get(model)
        if known is not None:
            spot.fields = known
            return
        spot.fields = self._fields_of[model] = {}
        for name, info in model.model_fields.items():
            token = _alias(name, info)
            inner = self._spot(info.annotation, info.metadata, (*path, token))
            inner.needed = info.is_required()
            spot.fields[token] = inner


def _unwrapped(kind: Any) -> tuple[Any, list[Any]]:
    """Take a type out of its annotations and aliases."""
    metadata: list[Any] = []
    while True:
        if typing.get_origin(kind) is Annotated:
            kind, *more = typing.get_args(kind)
            metadata += more
        elif hasattr(kind, "__value__"):
            kind = kind.__value__
        else:
            return kind, metadata


def _alias(name: str, info: FieldInfo) -> str:
    return info.alias or name


def _look(value: Any, token: str) -> tuple[bool, Any]:
    if type(value) is dict:
        return token in value, value.get(token)
    if type(value) is list and token[:1] == "#":
        for item in value:
            if type(item) is dict and item.get("id") == token[1:]:
                return True, item
    return False, None


def _check_length(spot: _Spot, value: Any, path: Sequence[str]) -> None:
    if len(value) < spot.least:
        raise _mismatch(path, f"expected at least {spot.least} items, got {len(value)}")
    if spot.most is not None and len(value) > spot.most:
        raise _mismatch(path, f"expected at most {spot.most} items, got {len(value)}")


def _named(value: Any, path: Sequence[str], loc: Sequence[Any], *, missing: bool) -> list[str]:
    """Say where pydantic found something, by the ids of list elements as far as they have any.

    What it names beside keys and indexes are branches of unions: they are no part of the path.
    """
    named = list(path)
    for n, part in enumerate(loc):
        if type(value) is list and type(part) is int and part < len(value):
            value = value[part]
            found = value.get("id") if type(value) is dict else None
            named.append(f"#{found}" if type(found) is str else str(part))
        elif type(value) is dict and part in value:
            value = value[part]
            named.append(part)
        elif missing and n == len(loc) - 1:
            named.append(str(part))
    return named


def _mismatch(path: Sequence[str], reason: str) -> ChangeRefused:
    return ChangeRefused(reason, code="schema_mismatch", path=join(path))


def _complete(kind: Any, value: Any) -> Any:
    """Return a value with the defaults of what its models have and it lacks."""
    bare, _ = _unwrapped(kind)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if isinstance(bare, type) and issubclass(bare, BaseModel) and type(value) is dict:
        complete = dict(value)
        for name, info in bare.model_fields.items():
            token = _alias(name, info)
            if token in complete:
                complete[token] = _complete(info.annotation, complete[token])
            elif not info.is_required():
                default = info.get_default(call_default_factory=True, validated_data={})
                adapter: TypeAdapter[Any] = TypeAdapter(info.annotation or Any)
                complete[token] = adapter.dump_python(default, mode="json", by_alias=True)
        return complete
    if origin is list and arguments and type(value) is list:
        return [_complete(arguments[0], item) for item in value]
    if origin is dict and len(arguments) == 2 and type(value) is dict:
        return {key: _complete(arguments[1], item) for key, item in value.items()}
    if origin in {typing.Union, types.UnionType}:
        branches = [one for one in arguments if one is not type(None)]
        if len(branches) == 1 and value is not None:
            return _complete(branches[0], value)
    return value


def _rename(model: type[SessionModel], old: str, new: str) -> Rename:
    paths = parse(old), parse(new)
    if len(paths[0]) != len(paths[1]) or not paths[0] or paths[0][:-1] != paths[1][:-1]:
        raise TypeError(
            f"expected each of {model.__name__}.renames to be two pointers that differ in their"
            f" last token only, got {old!r} and {new!r}: move values with an upgrade"
        )
    return paths
