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
import functools
import types
import typing
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar, cast

import msgspec
from annotated_types import MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, RootModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from reattach.core.connection import Role
from reattach.core.index import ANONYMOUS
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
    "WritableBy",
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


@dataclasses.dataclass(frozen=True, init=False)
class WritableBy:
    """Marks a field that only some roles may write; ``WritableBy()``: the server's own code alone.

        class Review(SessionModel):
            verdict: Annotated[str, WritableBy("owner")] = "open"
            score: Annotated[int, WritableBy()] = 0

    A change by others that would alter it, by whichever way, is refused ``forbidden``; one that
    writes what is around it and leaves it as it is goes through. In an object that a change makes
    or removes it may be its default.
    """

    roles: frozenset[str]

    def __init__(self, *roles: str) -> None:
        """Take the roles that may write it: ``owner``, ``editor`` (a viewer writes nothing)."""
        unknown = set(roles) - {Role.OWNER, Role.EDITOR}
        if unknown:
            raise TypeError(
                f"expected WritableBy to name the roles {Role.OWNER} and {Role.EDITOR}, or nobody,"
                f" got {', '.join(sorted(map(str, unknown)))}"
            )
        object.__setattr__(self, "roles", frozenset(roles))


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

    __slots__ = ("_adapter", "_config", "alone", "closed", "least", "most", "needed", "type")

    def __init__(self, kind: Any, policy: str, config: ConfigDict) -> None:
        super().__init__(policy)
        self.type = kind
        self._config = config
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
        """Raise `ValidationError`, its locations below a 0, where a value does not fit."""
        if self._adapter is None:
            # A tuple of one: what is in it has the settings of the model that it is a field of.
            kind: Any = types.GenericAlias(tuple, (self.type,))
            self._adapter = TypeAdapter(kind, config=self._config)
        self._adapter.validate_json(b"[%b]" % msgspec.json.encode(value), strict=True)

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
        self._fields_of: dict[Any, MutableMapping[str, Field]] = {}
        self._around: dict[Any, _Spot] = {}
        """The containers and unions that are being read, by their type."""
        self._root = self._spot(model, (), (), {})
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
            if token == ANONYMOUS and type(value) is list:
                break  # which of its elements it was is not told
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
            named = _named(value, done, first["loc"][1:], missing=first["type"] == "missing")
            raise _mismatch(named, first["msg"]) from None

    # Reading a model

    def _spot(self, kind: Any, metadata: Sequence[Any], path: Path, config: ConfigDict) -> _Spot:
        bare, inner = _unwrapped(kind)
        metadata = [*metadata, *inner]
        policy, writers = Policy.LATEST, None
        for mark in metadata:
            if isinstance(mark, _Marker):
                policy = mark.policy
            elif isinstance(mark, WritableBy):
                writers = mark.roles
            elif isinstance(mark, Step):
                self.step = path
        spot = _Spot(Annotated[(kind, *metadata)] if metadata else kind, policy, config)
        spot.writers = writers
        around = self._around.get(bare)
        if around is not None:
            # A named type that has itself in it: checked with what is around it.
            spot.fields, spot.alone = around.fields, False
            return spot
        own = [mark for mark in metadata if not isinstance(mark, _Marker | Step | WritableBy)]
        for mark in own:
            if isinstance(mark, MinLen):
                spot.least = mark.min_length
            elif isinstance(mark, MaxLen):
                spot.most = mark.max_length
            else:
                spot.alone = False
        if typing.get_args(bare):
            self._around[bare] = spot
        self._fill(spot, bare, path, config)
        self._around.pop(bare, None)
        return spot

    def _fill(self, spot: _Spot, kind: Any, path: Path, config: ConfigDict) -> None:
        """Give a spot its fields, by its type without annotations."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, RootModel):
            info = kind.model_fields["root"]
            inner = self._spot(info.annotation, info.metadata, path, kind.model_config)
            spot.fields, spot.alone = inner.fields, False
            _take_marks(spot, inner)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            self._fill_model(spot, kind, path)
        elif dataclasses.is_dataclass(kind) or hasattr(kind, "__required_keys__"):
            # Their fields merge as they are marked, and are checked together.
            spot.alone = False
            spot.fields = self._fields_of.get(kind, {})
            if kind not in self._fields_of:
                self._fields_of[kind] = spot.fields
                for name, hint in _hints(kind).items():
                    spot.fields[name] = self._spot(hint, (), (*path, name), config)
        elif origin in _LISTS and arguments:
            if origin is not tuple or arguments[1:] == (Ellipsis,):
                spot.fields[ANY] = self._spot(arguments[0], (), (*path, ANY), config)
        elif origin in {dict, Mapping} and len(arguments) == 2:
            spot.fields[ANY] = self._spot(arguments[1], (), (*path, ANY), config)
            spot.alone = spot.alone and arguments[0] is str
        elif origin in {typing.Union, types.UnionType}:
            branches = [one for one in arguments if one is not type(None)]
            # Not copied: a branch may be a model that is still being read.
            spot.fields = fields = ChainMap[str, Field]()
            for branch in branches:
                inner = self._spot(branch, (), path, config)
                _take_marks(spot, inner)
                fields.maps.append(inner.fields)
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
            or model.model_config.keys() & {"populate_by_name", "validate_by_name"}
            or "__pydantic_extra__" in vars(model).get("__annotations__", {})
        ):
            # They belong to the model: have it run them.
            spot.alone = False
        # Its fields have what it is called by, and its model is no field's.
        config = cast("ConfigDict", {**model.model_config, "alias_generator": None})
        known = self._fields_of.get(model)
        if known is not None:
            spot.fields = known
            return
        spot.fields = self._fields_of[model] = {}
        for name, info in model.model_fields.items():
            token = _alias(name, info)
            if token is None:
                raise TypeError(
                    f"expected {model.__name__}.{name} to be called the same when it is read and"
                    " written, by one name: give it one `alias`"
                )
            inner = self._spot(info.annotation, info.metadata, (*path, token), config)
            inner.needed = info.is_required()
            if inner.writers is not None and not inner.needed and info.default_factory is None:
                inner.initial = _adapter(model, name).dump_python(
                    info.default, mode="json", by_alias=True, round_trip=True
                )
            spot.fields[token] = inner


def _take_marks(spot: _Spot, inner: _Spot) -> None:
    """Have a type's own marks count where it is one of several, or wrapped."""
    if spot.policy == Policy.LATEST:
        spot.policy = inner.policy
    if spot.writers is None:
        spot.writers = inner.writers


def _unwrapped(kind: Any) -> tuple[Any, list[Any]]:
    """Take a type out of its annotations and aliases."""
    metadata: list[Any] = []
    while True:
        if typing.get_origin(kind) is Annotated:
            kind, *more = typing.get_args(kind)
            metadata += more
        elif hasattr(kind, "__value__"):
            kind = kind.__value__
        elif typing.get_origin(kind) in {typing.Required, typing.NotRequired}:
            kind = typing.get_args(kind)[0]
        else:
            return kind, metadata


def _alias(name: str, info: FieldInfo) -> str | None:
    """Return what a field is called in a state, None where that is not one name."""
    read, written = info.validation_alias or name, info.serialization_alias or name
    return written if read == written else None


def _hints(kind: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass or a typed dict, none where they cannot be resolved."""
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:
        return {}


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


@functools.cache
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    return TypeAdapter(model.model_fields[name].annotation or Any)


def _complete(kind: Any, value: Any) -> Any:
    """Return a value with the defaults of what its models have and it lacks."""
    bare, _ = _unwrapped(kind)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if isinstance(bare, type) and issubclass(bare, RootModel):
        return _complete(bare.model_fields["root"].annotation, value)
    if isinstance(bare, type) and issubclass(bare, BaseModel) and type(value) is dict:
        complete = dict(value)
        for name, info in bare.model_fields.items():
            token = info.serialization_alias or name
            if token in complete:
                complete[token] = _complete(info.annotation, complete[token])
            elif not info.is_required():
                default = info.get_default(call_default_factory=True, validated_data=complete)
                complete[token] = _adapter(bare, name).dump_python(
                    default, mode="json", by_alias=True, round_trip=True
                )
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
