"""What a Citation file lacks, as questions, and what becomes of it with their answers.

Pure: a document and a session's state go in, gaps and operations come out. Everything that is said
about a field comes from the schema; only its tone is ours.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from jsonschema import Draft7Validator, FormatChecker
from jsonschema.exceptions import ValidationError

__all__ = [
    "FORMAT",
    "NAME",
    "answer_touched",
    "convert",
    "document_of",
    "dump",
    "find_gaps",
    "first_state",
    "is_valid",
    "load",
    "original",
    "reconcile",
]

Json: TypeAlias = Any
Key: TypeAlias = tuple[str | int, ...]
"""A place in a document: names and indexes."""
Gap: TypeAlias = dict[str, Any]
Op: TypeAlias = dict[str, Any]

NAME = "CITATION.cff"
FORMAT = "Citation File Format 1.2.0"
DATA = Path(__file__).parent / "data"

# In the order in which people read a citation: the document is written and the questions are asked
# in it. What is not named here keeps its place behind.
ORDER = (
    "cff-version",
    "title",
    "message",
    "type",
    "abstract",
    "authors",
    "keywords",
    "license",
    "version",
    "date-released",
    "repository-code",
)
# The schema does not say which texts want room.
LONG = {"abstract", "description", "notes"}
# Of a line of the document, before the word that crosses it; a longer text becomes a block.
WIDTH = 54
# A choice of so few is shown as a whole; of more, it is searched.
FEW = 8
# Words that a name's own letters do not show.
WORDS = {"orcid": "ORCID", "doi": "DOI", "url": "URL", "cff": "CFF"}


# Reading and writing


class _Loader(yaml.SafeLoader):
    """YAML whose dates stay text, as the schema wants them."""


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


def load(text: str) -> dict[str, Json]:
    """Read a document; dates stay text. Raises `ValueError` for what is no YAML mapping."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected a mapping, got {type(document).__name__}")  # noqa: TRY004
    return document


def dump(document: Mapping[str, Json]) -> str:
    """Write a document, its fields in the order in which they are read."""
    ordered = {key: document[key] for key in sorted(document, key=_rank)}
    return yaml.dump(ordered, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)


@cache
def original() -> str:
    """Return the text of the unfinished document."""
    return (DATA / NAME).read_text(encoding="utf-8")


@cache
def schema() -> dict[str, Json]:
    """Return the JSON schema of the format."""
    found: dict[str, Json] = json.loads((DATA / "schema.json").read_text(encoding="utf-8"))
    return found


@cache
def _validator() -> Draft7Validator:
    # "format" alone is a remark in JSON Schema; a 31st of June should not pass, though.
    return Draft7Validator(schema(), format_checker=FormatChecker(["date"]))


def _rank(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


# Finding gaps


def is_valid(document: Mapping[str, Json]) -> bool:
    """Whether a document keeps to the schema."""
    return _validator().is_valid(document)


def find_gaps(document: Mapping[str, Json]) -> list[Gap]:
    """List what is missing or wrong, one gap a place, in reading order.

    A gap has an ``id`` made from its place, so that it is the same gap the next time.
    """
    found: dict[Key, ValidationError] = {}
    for error in _leaves(_validator().iter_errors(document)):
        for key in _places(error):
            found.setdefault(key, error)
    keys = sorted(found, key=lambda key: (_rank(str(key[0])) if key else -1, _sortable(key)))
    return [_gap(key, found[key], document) for key in keys]


def _sortable(key: Key) -> tuple[tuple[int, str], ...]:
    return tuple((part, "") if isinstance(part, int) else (-1, part) for part in key)


def _leaves(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    """Follow an error of alternatives to what is wrong in the one that was meant."""
    for error in errors:
        if error.context:
            yield from _leaves(_meant(error))
        else:
            yield error


def _meant(error: ValidationError) -> list[ValidationError]:
    """Return the errors of the alternative that the value comes nearest to."""
    branches: dict[int, list[ValidationError]] = {}
    for below in error.context or ():
        branches.setdefault(int(below.relative_schema_path[0]), []).append(below)

    def distance(branch: Sequence[ValidationError]) -> tuple[int, int]:
        # A value of another type, or with other fields, was hardly meant as that.
        other = {"type", "additionalProperties", "required"}
        strange = sum(not below.relative_path and below.validator in other for below in branch)
        return strange, len(branch)

    return min(branches.values(), key=distance)


def _places(error: ValidationError) -> list[Key]:
    """Return where an answer would go; a missing field is a place, too."""
    at: Key = tuple(error.absolute_path)
    if error.validator == "required":
        instance: Json = error.instance
        wanted: Json = error.validator_value
        return [(*at, name) for name in wanted if name not in instance]
    return [at]


def _gap(key: Key, error: ValidationError, document: Mapping[str, Json]) -> Gap:
    field = _field(key)
    found = _at(document, key)
    gap: Gap = {
        "id": ".".join(map(str, key)) or "document",
        "path": "".join(f"/{_escape(str(part))}" for part in key),
        "title": _title(key),
        "description": _described(field),
        "kind": _kind(key, field),
        "problem": _problem(error, found, field),
        "checked": None,
    }
    if found not in (None, "", []):
        gap["found"] = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    examples = field.get("examples") or field.get("items", {}).get("examples")
    if examples:
        gap["examples"] = [str(example) for example in examples[:3]]
    if "enum" in field:
        gap["choices"] = list(field["enum"])
    return gap


def _escape(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")


_NOTHING = object()


def _at(document: Json, key: Key) -> Json:
    """Return what stands at a place, or None."""
    value = document
    for part in key:
        if isinstance(value, Mapping) and isinstance(part, str):
            value = value.get(part, _NOTHING)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return None if value is _NOTHING else value


def _field(key: Key) -> dict[str, Json]:
    """Return what the schema says of a place, references followed, alternatives chosen."""
    field = _followed(schema())
    for part in key:
        field = _below(field, part)
    if "oneOf" in field or "anyOf" in field:
        # One value rather than several: what a person answers in one field.
        options = [_followed(option) for option in field.get("oneOf") or field["anyOf"]]
        simple = next((one for one in options if one.get("type") == "string"), options[0])
        field = {**simple, **{name: field[name] for name in ("description",) if name in field}}
    return field


def _below(field: Mapping[str, Json], part: str | int) -> dict[str, Json]:
    for option in (field, *field.get("anyOf", ()), *field.get("oneOf", ())):
        known = _followed(option)
        if isinstance(part, int) and "items" in known:
            return _followed(known["items"])
        if part in known.get("properties", {}):
            return _followed(known["properties"][part])
    return {}


def _followed(field: Mapping[str, Json]) -> dict[str, Json]:
    """Follow a reference; what stands beside it comes first, being said of this very field."""
    known = dict(field)
    while "$ref" in known:
        name = known.pop("$ref").removeprefix("#/definitions/")
        known = {**schema()["definitions"][name], **known}
    return known


def _title(key: Key) -> str:
    """Return a place in words: "ORCID of author 1"."""
    parts: list[str] = []
    for part in key:
        if isinstance(part, int):
            parts[-1] = f"{parts[-1].removesuffix('s')} {part + 1}"
        else:
            parts.append(" ".join(WORDS.get(word, word) for word in part.split("-")))
    title = " of ".join(reversed(parts)) or "document"
    return title[0].upper() + title[1:]


def _described(field: Mapping[str, Json]) -> str:
    text = str(field.get("description", "")).strip()
    return text if not text or text.endswith((".", "?", "!", ")")) else f"{text}."


def _kind(key: Key, field: Mapping[str, Json]) -> str:
    """Return what to ask with: the page has a form field for each kind."""
    last = str(key[-1]) if key else ""
    if "enum" in field:
        return "choice" if len(field["enum"]) <= FEW else "search"
    if field.get("format") in {"date", "uri"}:
        return {"date": "date", "uri": "url"}[field["format"]]
    kinds = {"array": "list", "number": "number", "integer": "number"}
    if field.get("type") in kinds:
        return kinds[field["type"]]
    if last in LONG:
        return "long"
    return "email" if last == "email" else "text"


def _problem(error: ValidationError, found: Json, field: Mapping[str, Json]) -> str:
    if error.validator == "required" or found is None:
        return "It is missing."
    if found in ("", []):
        return "It is empty."
    if error.validator == "enum":
        choices = list(field.get("enum", ()))
        if len(choices) > FEW:
            return f"This is not one of the {len(choices)} values that the format knows."
        return f"This has to be {' or '.join(map(str, choices))}."
    if error.validator == "format" or "date" in str(field.get("format", "")):
        return "This is not a date of the calendar, written as in 2020-12-31."
    if error.validator == "pattern":
        return f"This does not have the form of {_form(field)}."
    if error.validator == "additionalProperties":
        return "This has a field that the format does not know."
    return f"{error.message[:200]}."


def _form(field: Mapping[str, Json]) -> str:
    pattern = str(field.get("pattern", ""))
    if "orcid" in pattern:
        return "https://orcid.org/0000-0002-1825-0097"
    if "http" in pattern:
        return "a web address, such as https://example.org"
    if "@" in pattern:
        return "an email address, such as name@example.org"
    examples = field.get("examples")
    return str(examples[0]) if examples else f"the pattern {pattern}"


# Answering


def convert(answer: str, kind: str) -> Json:
    """Make of an answer, which people give as text, the value that its field takes."""
    text = answer.replace("\r\n", "\n").strip()
    if kind == "list":
        items = (item.strip() for item in re.split(r"[\n,;]", text))
        return list(dict.fromkeys(item for item in items if item))
    if kind == "number":
        try:
            return int(text)
        except ValueError:
            try:
                return float(text)
            except ValueError:
                return text
    return text if kind == "long" else re.sub(r"\s*\n\s*", " ", text)


def document_of(state: Mapping[str, Json]) -> dict[str, Json]:
    """Return the document with the answers of a session's state in it."""
    document = copy.deepcopy(_loaded())
    kinds = {gap["id"]: (_key(gap["id"]), gap["kind"]) for gap in _gaps_of(state)}
    for response in _list(state, "user_responses"):
        known = kinds.get(str(response.get("gap")))
        answer = response.get("answer")
        if known and isinstance(answer, str) and answer.strip():
            _put(document, known[0], convert(answer, known[1]))
    return document


@cache
def _loaded() -> dict[str, Json]:
    return load(original())


def _key(gap_id: str) -> Key:
    if gap_id == "document":
        return ()
    return tuple(int(part) if part.isdecimal() else part for part in gap_id.split("."))


def _put(document: Json, key: Key, value: Json) -> None:
    parent = _at(document, key[:-1]) if key else None
    inside = isinstance(parent, list) and isinstance(key[-1], int) and key[-1] < len(parent)
    if parent is not None and (inside or isinstance(parent, dict)):
        parent[key[-1]] = value


# The session's state


def first_state() -> dict[str, Json]:
    """Return the state of a new session: the unfinished document and its questions."""
    gaps = find_gaps(_loaded())
    return {
        "current_step": 0,
        "total_steps": len(gaps),
        "gaps_detected": gaps,
        "gaps_resolved": [],
        # There from the start: two devices that begin to answer do not make two of them.
        "user_responses": [_response(gap) for gap in gaps],
        "context": {
            "document_name": NAME,
            "format": FORMAT,
            "original": dump(_loaded()),
            "document": dump(_loaded()),
            "valid": not gaps,
        },
    }


def _response(gap: Gap) -> dict[str, Json]:
    """Return an empty response: ``draft`` is what is being typed, ``answer`` what counts."""
    return {"id": gap["id"], "gap": gap["id"], "draft": "", "answer": None}


def answer_touched(patch: Iterable[Mapping[str, Json]]) -> bool:
    """Whether a commit may have changed an answer; what is only typed so far does not."""
    return any(_ANSWERS.fullmatch(str(op.get("path"))) for op in patch)


_ANSWERS = re.compile(r"|/user_responses(/[^/]+(/answer|/gap|/id)?)?|/gaps_detected(/.*)?")


def reconcile(state: Mapping[str, Json]) -> list[Op]:
    """Return what has to be done for a state to tell the truth about its answers; mostly nothing.

    A function of the state alone, so that it may be called at any time, by anybody, again.
    """
    document = document_of(state)
    now = {gap["id"]: gap for gap in find_gaps(document)}
    known = {gap["id"]: gap for gap in _gaps_of(state)}
    answers = {str(one.get("gap")): one.get("answer") for one in _list(state, "user_responses")}
    ops: list[Op] = []
    for gap_id, gap in known.items():
        answer = answers.get(gap_id)
        told = {
            "problem": now[gap_id]["problem"] if gap_id in now else None,
            "checked": answer if isinstance(answer, str) else None,
        }
        ops += _sets(f"/gaps_detected/#{gap_id}", gap, told)
    for gap_id, gap in now.items():
        if gap_id not in known:
            # An answer may open another question.
            ops.append({"op": "insert", "path": "/gaps_detected", "value": gap})
            ops.append({"op": "insert", "path": "/user_responses", "value": _response(gap)})
    ops += _resolve(state, [gap for gap in known.values() if gap["id"] not in now], answers)
    steps = len(known.keys() | now.keys())
    ops += _sets("", state, {"total_steps": steps})
    context = state.get("context")
    if isinstance(context, Mapping):
        ops += _sets("/context", context, {"document": dump(document), "valid": not now})
    return ops


def _resolve(
    state: Mapping[str, Json], gaps: Sequence[Gap], answers: Mapping[str, Json]
) -> list[Op]:
    before = {one.get("id"): one for one in _list(state, "gaps_resolved")}
    after = {
        gap["id"]: {
            "id": gap["id"],
            "path": gap["path"],
            "title": gap["title"],
            "answer": answers.get(gap["id"]),
        }
        for gap in gaps
    }
    gone = [
        {"op": "unset", "path": f"/gaps_resolved/#{gap_id}"}
        for gap_id in before
        if gap_id not in after
    ]
    new = [
        {"op": "insert", "path": "/gaps_resolved", "value": value}
        for gap_id, value in after.items()
        if before.get(gap_id) != value
    ]
    return gone + new


def _sets(path: str, stands: Mapping[str, Json], wanted: Mapping[str, Json]) -> list[Op]:
    return [
        {"op": "set", "path": f"{path}/{name}", "value": value}
        for name, value in wanted.items()
        if name not in stands or stands[name] != value
    ]


def _gaps_of(state: Mapping[str, Json]) -> list[Gap]:
    """Return the gaps that a state holds, as far as they are ours."""
    texts = ("id", "path", "title", "kind")
    found = _list(state, "gaps_detected")
    return [
        gap
        for gap in found
        if all(isinstance(gap.get(name), str) for name in texts) and _ID.fullmatch(gap["id"])
    ]


_ID = re.compile(r"[a-z-]+(\.([a-z-]+|[0-9]{1,4}))*")


def _list(state: Mapping[str, Json], name: str) -> list[dict[str, Json]]:
    """Return a list of the state; whoever may write the session may have put anything there."""
    value = state.get(name)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
