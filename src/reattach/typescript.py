"""TypeScript types from JSON Schema: those of session schemas, and those of the wire.

`of_model` writes what a session's state is, for ``connect<State>()`` and the React hooks.
`declarations` is the generator itself; it knows the JSON Schema (draft 2020-12) that pydantic and
msgspec write, and raises `Untranslatable` for what they never do.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from reattach.errors import ReattachError

__all__ = ["Untranslatable", "declarations", "of_model"]

Schema: TypeAlias = Mapping[str, Any]

_WIDTH = 100
_DEFS = "#/$defs/"
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_WORDS = """
    any bigint boolean break case catch class const continue debugger default delete do else enum
    export extends false finally for function if implements import in instanceof interface let never
    new null number object package private protected public return static string super switch symbol
    this throw true try type typeof undefined unknown var void while with yield
"""
_RESERVED = frozenset(_WORDS.split())
_PRIMITIVES = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
}


_SAYS_MORE = frozenset({"not", "if", "properties", "items", "prefixItems", "$dynamicRef"})
"""What would say something of a value without a ``type``; pydantic and msgspec never do."""


class Untranslatable(ReattachError):
    """A schema that has no TypeScript: the message says where and what."""

    code = "untranslatable"


class _Stated(GenerateJsonSchema):
    """The schema of a state: what may be in it, every field with a default included."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Count a field as there when it has a default: the server writes it out."""
        return field["type"] == "model-field" or super().field_is_required(field, total)


def of_model(model: type[BaseModel]) -> str:
    """Return declarations of a pydantic model and of all that it refers to; the model comes first.

    Raises `Untranslatable` where a field has no JSON Schema, such as a callable.
    """
    try:
        root = model.model_json_schema(schema_generator=_Stated, mode="validation")
    except PydanticUserError as error:
        raise Untranslatable(f"expected {model.__name__} to have a JSON Schema: {error}") from None
    schemas = dict(root.pop("$defs", {}))
    name = model.__name__
    own = f"{_DEFS}{name}"
    if root.get("$ref") == own and len(root) == 1:
        # It refers to itself, and stands among the others.
        root = schemas.pop(name)
    elif name in schemas:
        raise Untranslatable(f"expected one model of the name {name}, got two: rename one")
    return declarations({name: root, **schemas})


def declarations(
    schemas: Mapping[str, Schema], *, anything: str = "unknown", readonly: bool = False
) -> str:
    """Return one exported declaration for each schema, in their order.

    ``anything`` is what a value of any kind is called; ``readonly`` is for types that are only
    read. References are ``#/$defs/`` and a name.
    """
    writer = _Writer(schemas, anything, readonly=readonly)
    return "\n".join(writer.declaration(name, schema) for name, schema in schemas.items())


class _Writer:
    def __init__(self, schemas: Mapping[str, Schema], anything: str, *, readonly: bool) -> None:
        self._anything = anything
        self._readonly = "readonly " if readonly else ""
        self._names = _names(schemas)

    def declaration(self, name: str, schema: Schema) -> str:
        own = self._names[name]
        doc = "".join(_doc(schema, ""))
        if _is_object(schema):
            body = "".join(self._members(schema, name))
            opened = f"\n{body}" if body else ""
            return f"{doc}export interface {own} {{{opened}}}\n"
        return f"{doc}{_fitted(f'export type {own} =', self._options(schema, name), '')}"

    def _members(self, schema: Schema, where: str) -> Iterator[str]:
        required = schema.get("required", ())
        for key, value in schema.get("properties", {}).items():
            yield from _doc(value, "  ")
            mark = "" if key in required else "?"
            head = f"  {self._readonly}{_key(key)}{mark}:"
            yield _fitted(head, self._options(value, f"{where}.{key}"), "  ")
        others = self._others(schema, where)
        if others is not None:
            yield f"  {self._readonly}[key: string]: {others};\n"

    def _others(self, schema: Schema, where: str) -> str | None:
        """Return the type of the members that have no names of their own, None where none may be.

        Beside named members it is anything: an index signature speaks of them, too.
        """
        kinds = list(schema.get("patternProperties", {}).values())
        rest = schema.get("additionalProperties", False if kinds else None)
        if rest is None or rest is False:
            if not kinds:
                return None
        else:
            kinds.append(rest)
        if schema.get("properties"):
            return self._anything
        return self._union(option for kind in kinds for option in self._options(kind, where))

    def _type(self, schema: Schema | bool, where: str) -> str:
        return self._union(self._options(schema, where))

    def _union(self, options: Iterable[str]) -> str:
        return " | ".join(self._distinct(options)) or "never"

    def _distinct(self, options: Iterable[str]) -> list[str]:
        found = list(dict.fromkeys(options))
        # What holds anything holds the others, too.
        return [self._anything] if self._anything in found else found

    def _options(self, schema: Schema | bool, where: str) -> list[str]:
        """Return what a value may be: the members of a union, or the one type."""
        if isinstance(schema, bool):
            return [self._anything if schema else "never"]
        if "$ref" in schema:
            return [self._reference(schema["$ref"], where)]
        if "const" in schema or "enum" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            return [json.dumps(value, ensure_ascii=False) for value in values]
        for word in ("anyOf", "oneOf"):
            if word in schema:
                found = [one for part in schema[word] for one in self._options(part, where)]
                return self._distinct(found)
        if "allOf" in schema:
            parts = [_bracketed(self._type(part, where)) for part in schema["allOf"]]
            return [" & ".join(dict.fromkeys(parts))]
        kinds = schema.get("type", ())
        if kinds == () and not schema.keys() & _SAYS_MORE:
            return [self._anything]
        return [self._typed(kind, schema, where) for kind in _listed(kinds)]

    def _typed(self, kind: str, schema: Schema, where: str) -> str:
        if kind == "array":
            return self._array(schema, where)
        if kind == "object":
            return self._object(schema, where)
        if kind in _PRIMITIVES:
            return _PRIMITIVES[kind]
        raise Untranslatable(
            f"expected a JSON Schema with type, enum, const, anyOf or $ref at {where}, got"
            f" {json.dumps(dict(schema))[:120]}"
        )

    def _reference(self, pointer: str, where: str) -> str:
        name = pointer.removeprefix(_DEFS).replace("~1", "/").replace("~0", "~")
        if not pointer.startswith(_DEFS) or name not in self._names:
            raise Untranslatable(f"expected a reference to a known type at {where}, got {pointer}")
        return self._names[name]

    def _array(self, schema: Schema, where: str) -> str:
        rest = schema.get("items")
        if "prefixItems" in schema:
            least = schema.get("minItems", 0)
            parts = [
                _bracketed(self._type(one, where)) + ("" if at < least else "?")
                for at, one in enumerate(schema["prefixItems"])
            ]
            if rest:
                parts.append(f"...{_bracketed(self._type(rest, where))}[]")
            return f"{self._readonly}[{', '.join(parts)}]"
        kind = self._anything if rest is None else self._type(rest, where)
        return f"{self._readonly}{_bracketed(kind)}[]"

    def _object(self, schema: Schema, where: str) -> str:
        names = schema.get("propertyNames", {})
        if "enum" in names or "const" in names or "$ref" in names:
            keys = self._type(names, where)
            value = self._others(schema, where) or self._anything
            return f"{{ {self._readonly}[Key in {keys}]?: {value} }}"
        members = [line.strip() for line in self._members(_plain(schema), where)]
        if not members and schema.get("additionalProperties") is not False:
            return f"{{ {self._readonly}[key: string]: {self._anything} }}"
        return f"{{ {' '.join(members).rstrip(';')} }}" if members else "{ [key: string]: never }"


def _listed(kinds: str | Sequence[str]) -> Sequence[str]:
    """Return the types that a schema names; one that is none where it names none."""
    return [kinds] if isinstance(kinds, str) else kinds or [""]


def _is_object(schema: Schema) -> bool:
    return schema.get("type") == "object" and "propertyNames" not in schema


def _plain(schema: Schema) -> Schema:
    """Return an object's schema without what its members say of themselves, to stand in a line."""
    members = {
        key: {word: value for word, value in member.items() if word != "description"}
        for key, member in schema.get("properties", {}).items()
    }
    return {**schema, "properties": members}


def _names(schemas: Iterable[str]) -> dict[str, str]:
    """Give each schema a name that TypeScript takes."""
    names: dict[str, str] = {}
    for given in schemas:
        name = re.sub(r"\W+", "_", given, flags=re.ASCII).strip("_") or "Model"
        if name[0].isdigit() or name in _RESERVED:
            name = f"{name}_" if name in _RESERVED else f"_{name}"
        while name in names.values():
            name = f"{name}_"
        names[given] = name
    return names


def _key(name: str) -> str:
    return name if _IDENTIFIER.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _bracketed(kind: str) -> str:
    """Brackets where an operator would bind less than what follows."""
    return f"({kind})" if " | " in kind or " & " in kind else kind


def _fitted(head: str, options: Sequence[str], indent: str) -> str:
    """Return `head` with its union, on one line where it fits."""
    line = f"{head} {' | '.join(options)};\n"
    if len(line) <= _WIDTH + 1 or len(options) == 1:
        return line
    rows = "".join(f"\n{indent}  | {option}" for option in options)
    return f"{head}{rows};\n"


def _doc(schema: Schema | bool, indent: str) -> Iterator[str]:
    if isinstance(schema, bool):
        return
    text = str(schema.get("description", "")).strip().replace("*/", "*\\/")
    if schema.get("deprecated"):
        text = f"{text}\n\n@deprecated".strip()
    if not text:
        return
    width = _WIDTH - len(indent) - 3
    lines = [
        piece
        for line in text.splitlines()
        for piece in (textwrap.wrap(line.strip(), width, break_long_words=False) or [""])
    ]
    if len(lines) == 1 and len(lines[0]) <= width - 4:
        yield f"{indent}/** {lines[0]} */\n"
        return
    yield f"{indent}/**\n"
    for line in lines:
        yield f"{indent} * {line}".rstrip() + "\n"
    yield f"{indent} */\n"
