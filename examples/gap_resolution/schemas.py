"""Documents of somebody's own JSON schema: what of a pasted one can be asked for in a form.

A schema comes from anybody, and the server evaluates it again and again: it is small, refers to
nothing outside of itself and not to itself either, and its patterns are matched by an engine whose
time is linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from pydantic_core import SchemaError as BadPattern
from pydantic_core import SchemaValidator, core_schema
from pydantic_core import ValidationError as NoMatch

from .kinds import FORMATS, Kind

__all__ = ["kind_of", "read_schema"]

Json: TypeAlias = Any

MAX_TEXT: Final = 64_000
"""Characters of a pasted schema."""
MAX_DEPTH: Final = 24
MAX_FIELDS: Final = 60
"""Fields at the top: each is a question."""
MAX_NAME: Final = 80
MAX_PATTERN: Final = 500
MAX_SIZE: Final = 5_000
"""Parts of a schema, counted as often as they are referred to."""

# Which keywords hold what (JSON Schema 2020-12, and draft 7 where it differs).
_NAMED: Final = ("properties", "definitions", "$defs", "dependentSchemas")
_LISTED: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE: Final = (
    *("items", "additionalItems", "contains", "additionalProperties", "propertyNames"),
    *("not", "if", "then", "else", "unevaluatedItems", "unevaluatedProperties"),
)
# What would have to be looked for elsewhere, or cannot be bounded.
_REFUSED: Final = (
    *("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$anchor", "patternProperties"),
    "dependencies",
)
# What is said of the whole document and not of a field: no question could ask for it.
_NOT_AT_TOP: Final = (
    *_LISTED,
    *("not", "if", "then", "else", "$ref", "dependentRequired", "dependentSchemas"),
    *("minProperties", "maxProperties", "propertyNames", "unevaluatedProperties", "const", "enum"),
)
# No form library takes these as names.
_NO_NAMES: Final = frozenset({"__proto__", "constructor", "prototype"})

Parts: TypeAlias = Iterator[tuple[str, Json]]


def read_schema(text: str) -> dict[str, Json]:
    """Read a pasted schema; raises `ValueError` with what is wrong, and where."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"expected a schema of at most {MAX_TEXT} characters, got {len(text)}")
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"expected JSON: {error.msg}, at line {error.lineno}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError("expected JSON that is nested less, with shorter numbers") from error
    check(schema)
    found: dict[str, Json] = schema
    return found


def kind_of(schema: Json) -> Kind:
    """Return the kind of document that a schema describes; raises `ValueError` as `read_schema`.

    The schema may come from a session, where whoever may write has put anything.
    """
    try:
        text = json.dumps(schema)
    except RecursionError as error:
        raise ValueError("expected a schema that is nested less") from error
    return _kind_of(text)


@lru_cache(maxsize=64)
def _kind_of(text: str) -> Kind:
    schema = read_schema(text)
    title = schema.get("title")
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] if title else ""
    name = name or "document"
    own = {key: value for key, value in schema.items() if key != "$id"}
    return Kind(
        id="own",
        format=title or "Your own schema",
        syntax="json",
        sample="",
        names={syntax: f"{name}.{syntax}" for syntax in ("json", "yaml", "toml")},
        order=tuple(schema["properties"]),
        read_schema=lambda: own,
        wanted={},
        long=frozenset(),
        own=True,
        make_validator=_validator,
    )


# Checking


def check(schema: Json) -> None:
    """Raise `ValueError` for a schema that no document could be asked for by."""
    if not isinstance(schema, dict):
        raise ValueError(f"expected a JSON Schema (an object), got {_called(schema)}")  # noqa: TRY004
    _walk(schema, "", 0)
    if schema.get("type", "object") != "object":
        raise ValueError(f'at "type": expected "object" at the top, got {schema["type"]!r}')
    fields = schema.get("properties")
    if not isinstance(fields, dict) or not fields:
        raise ValueError('expected "properties" at the top: they are what is asked for')
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"expected at most {MAX_FIELDS} properties at the top, got {len(fields)}")
    for keyword in _NOT_AT_TOP:
        if keyword in schema:
            raise ValueError(f'"{keyword}" at the top says nothing of a single field: leave it out')
    cls = validator_for(schema, default=Draft202012Validator)
    try:
        cls.check_schema(schema)
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        raise ValueError(f"at {place or 'the top'}: {error.message[:200]}") from error
    for name in schema.get("required", ()):
        if name not in fields:
            raise ValueError(f'"required" names {name!r}, which is not among the properties')
    _Size(schema).of(schema, "", ())
    for name, field in fields.items():
        _askable(field, schema, f"properties/{name}", 0)


def _walk(schema: Json, at: str, depth: int) -> None:
    """Look at each part, before anything is evaluated."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ValueError(f"at {at or 'the top'}: expected a schema, got {_called(schema)}")  # noqa: TRY004
    if depth > MAX_DEPTH:
        raise ValueError(f"at {at}: expected at most {MAX_DEPTH} levels of schemas")
    for keyword in _REFUSED:
        if keyword in schema:
            raise ValueError(f'at {at or "the top"}: "{keyword}" is not known here: leave it out')
    if at and "$id" in schema:
        raise ValueError(f'at {at}: expected "$id" at the top alone')
    ref = schema.get("$ref")
    if ref is not None and not (isinstance(ref, str) and re.match(r"#(/|$)", ref)):
        raise ValueError(
            f"at {at or 'the top'}: expected a reference within this schema (#/…), got {ref!r:.120}"
        )
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        _check_pattern(pattern, at)
    for where, part in _parts(schema):
        _walk(part, f"{at}/{where}".lstrip("/"), depth + 1)


def _check_pattern(pattern: str, at: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"at {at}: expected a pattern of at most {MAX_PATTERN} characters")
    try:
        _regex(pattern)
    except BadPattern as error:
        raise ValueError(
            f"at {at}: this pattern is not known here (look-around and back-references are not):"
            f" {pattern!r:.120}"
        ) from error


def _parts(schema: Mapping[str, Json]) -> Parts:
    for keyword in _NAMED:
        named = schema.get(keyword)
        if not isinstance(named, dict):
            continue
        for name, part in named.items():
            if keyword == "properties" and (
                not 0 < len(name) <= MAX_NAME or name in _NO_NAMES or not name.isprintable()
            ):
                raise ValueError(
                    f"expected names of properties with 1 to {MAX_NAME} letters, got {name!r:.100}"
                )
            yield f"{keyword}/{name}", part
    for keyword in _LISTED:
        listed = schema.get(keyword)
        for n, part in enumerate(listed if isinstance(listed, list) else ()):
            yield f"{keyword}/{n}", part
    for keyword in _SINGLE:
        if keyword in schema and isinstance(schema[keyword], dict | bool):
            yield keyword, schema[keyword]
        elif keyword in schema:
            raise ValueError(f'expected "{keyword}" to be a schema, got {_called(schema[keyword])}')


class _Size:
    """How much a schema is with every reference followed; none may lead back to itself."""

    def __init__(self, root: Mapping[str, Json]) -> None:
        self._root = root
        self._known: dict[str, int] = {}

    def of(self, schema: Json, at: str, following: tuple[str, ...]) -> int:
        """Return the number of a schema's parts; raises `ValueError` where it has no end."""
        if not isinstance(schema, dict):
            return 1
        size = 1
        ref = schema.get("$ref")
        if isinstance(ref, str):
            if ref in following:
                raise ValueError(f"at {at}: {ref} refers to itself, which a form cannot show")
            if ref not in self._known:
                self._known[ref] = self.of(self._target(ref, at), ref, (*following, ref))
            size += self._known[ref]
        for where, part in _parts(schema):
            # What is only there to be referred to counts where it is.
            if not where.startswith(("definitions/", "$defs/")):
                size += self.of(part, f"{at}/{where}".lstrip("/"), following)
        if size > MAX_SIZE:
            raise ValueError(f"expected a schema of at most {MAX_SIZE} parts, references followed")
        return size

    def _target(self, ref: str, at: str) -> Json:
        found = pointed(self._root, ref)
        if not isinstance(found, dict | bool):
            raise ValueError(f"at {at}: there is nothing at {ref!r:.120}")  # noqa: TRY004
        return found


def pointed(root: Mapping[str, Json], ref: str) -> Json:
    """Return what a reference within a schema leads to, None where that is nothing."""
    found: Json = root
    for token in ref.removeprefix("#").split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


FORM_DEPTH: Final = 3


def _askable(field: Json, root: Mapping[str, Json], at: str, depth: int) -> None:
    """See that a form can be made of a field."""
    if isinstance(field, bool):
        raise ValueError(f"at {at}: expected a schema that says of which type it is")  # noqa: TRY004
    while isinstance(field.get("$ref"), str):
        target = pointed(root, field["$ref"])
        rest = {name: value for name, value in field.items() if name != "$ref"}
        field = {**target, **rest} if isinstance(target, dict) else rest
    for option in (*field.get("oneOf", ()), *field.get("anyOf", ())):
        if isinstance(option, dict) and option.get("type") != "null":
            _askable(option, root, at, depth)
    kind = field.get("type")
    if kind == "object" or "properties" in field:
        if not field.get("properties"):
            raise ValueError(f'at {at}: expected an object with "properties": they are asked for')
        if depth >= FORM_DEPTH:
            raise ValueError(f"at {at}: expected objects in at most {FORM_DEPTH} levels")
        for name, part in field["properties"].items():
            _askable(part, root, f"{at}/{name}", depth + 1)
    elif isinstance(field.get("items"), dict):
        _askable(field["items"], root, f"{at}/items", depth)


def _called(value: Json) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# Evaluating


@lru_cache(maxsize=512)
def _regex(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


def _matches(
    validator: Validator, pattern: str, value: Json, schema: Mapping[str, Json]
) -> Iterator[ValidationError]:
    del schema
    if not validator.is_type(value, "string"):
        return
    try:
        _regex(pattern).validate_python(value)
    except NoMatch:
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _formats() -> FormatChecker:
    checker = FormatChecker(())
    checker.checkers = {
        **FORMATS.checkers,
        "email": FORMATS.checkers["idn-email"],
        "uri": FORMATS.checkers["url"],
    }
    return checker


def _validator(schema: dict[str, Json]) -> Validator:
    cls = validator_for(schema, default=Draft202012Validator)
    extended = extend(cls, {"pattern": _matches})  # type: ignore[no-untyped-call]  # says nothing
    made: Validator = extended(schema, format_checker=_formats())
    return made
