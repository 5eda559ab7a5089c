"""Documents as text: JSON, YAML and TOML, read into plain JSON and written as people write them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import tomlkit
import yaml
from tomlkit.items import Array, InlineTable

__all__ = ["SYNTAXES", "dump", "load", "syntax_of"]

Json: TypeAlias = Any

SYNTAXES: Final = ("yaml", "toml", "json")
# Of a line; beyond it a text becomes a block, and a list one line for each element.
WIDTH = 60


class _Loader(yaml.SafeLoader):
    """YAML whose dates stay text, as schemas want them."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: lists set in, long texts as blocks."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, indentless=False)


# What YAML 1.1 takes for ends of lines, and would alter.
_BREAKS = frozenset("\x85\u2028\u2029")


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if _BREAKS.intersection(text):
        style = '"'
    elif "\n" in text:
        style = "|"
    elif len(text) > WIDTH:
        style = ">"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def load(text: str, syntax: str) -> dict[str, Json]:
    """Read a document; dates become text. Raises `ValueError` for what is no mapping."""
    document: Json
    try:
        if syntax == "json":
            document = json.loads(text)
        elif syntax == "toml":
            document = tomlkit.parse(text).unwrap()
        else:
            document = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"expected {syntax.upper()}: {_why(error)}") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected a mapping, got {type(document).__name__}")  # noqa: TRY004
    plain: dict[str, Json] = _plain(document)
    return plain


def _why(error: Exception) -> str:
    """Say what a parser found; YAML's would show the text as well, over several lines."""
    match error:
        case yaml.MarkedYAMLError(problem=str(problem), problem_mark=yaml.Mark() as mark):
            return f"{problem}, at line {mark.line + 1}, column {mark.column + 1}"
        case _:
            return str(error)


def syntax_of(text: str, otherwise: str) -> str:
    """Tell in which syntax a text is, where it can be told; most JSON is YAML as well."""
    for syntax in ("json", otherwise, "toml"):
        try:
            load(text, syntax)
        except ValueError:
            continue
        return syntax
    return otherwise


def dump(document: Mapping[str, Json], syntax: str) -> str:
    """Write a document, its fields in the order in which they are given."""
    if syntax == "json":
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    if syntax == "toml":
        return _toml(document)
    return yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH
    )


def _plain(value: Json) -> Json:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


def _toml(document: Mapping[str, Json]) -> str:
    root = tomlkit.document()
    for key, value in document.items():
        # TOML knows no null: what is nothing is not there.
        if value is not None:
            root[key] = _table(value) if isinstance(value, dict) else _item(value)
    return tomlkit.dumps(root).strip() + "\n"


def _table(value: Mapping[str, Json]) -> Json:
    table = tomlkit.table()
    # Tables come last: whatever stands behind one would belong to it.
    for key, one in sorted(value.items(), key=lambda item: _is_table(item[1])):
        if one is not None:
            table[key] = _table(one) if _is_table(one) else _item(one)
    return table


def _is_table(value: Json) -> bool:
    return isinstance(value, dict) and (len(value) > 2 or not _fits(value))


def _fits(value: Json) -> bool:
    return len(json.dumps(value, ensure_ascii=False)) <= WIDTH


def _item(value: Json) -> Json:
    if isinstance(value, dict):
        inline: InlineTable = tomlkit.inline_table()
        inline.update({key: _item(one) for key, one in value.items() if one is not None})
        return inline
    if isinstance(value, list):
        array: Array = tomlkit.array()
        array.extend(_item(one) for one in value if one is not None)
        return array.multiline(not _fits(value))
    if isinstance(value, str) and "\n" in value and "\r" not in value:
        return tomlkit.string(value, multiline=True)
    return tomlkit.item(value)
