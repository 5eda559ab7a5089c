"""What a document lacks, as questions, and what becomes of it with their answers.

Pure: a document and a session's state go in, gaps and operations come out. Everything that is said
about a field comes from its schema; only its tone is ours.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from jsonschema.exceptions import ValidationError

from . import documents, schemas
from .kinds import CITATION, DATA, KINDS, Kind

__all__ = [
    "DATA",
    "answer_touched",
    "convert",
    "document_of",
    "file_of",
    "find_gaps",
    "first_state",
    "is_valid",
    "reconcile",
]

Json: TypeAlias = Any
Key: TypeAlias = tuple[str | int, ...]
"""A place in a document: names and indexes."""
Gap: TypeAlias = dict[str, Any]
Op: TypeAlias = dict[str, Any]

# A choice of so few is shown as a whole; of more, it is searched.
FEW = 8
# A text that may be longer than this gets room.
LONG = 200
# An object of more fields than these is asked for by the main ones.
MANY = 5
MAIN = (
    "given-names",
    "family-names",
    "name",
    "title",
    "authors",
    "email",
    "orcid",
    "affiliation",
    "type",
    "value",
    "description",
    "doi",
    "url",
    "year",
)
# Words that a name's own letters do not show.
WORDS = {
    "orcid": "ORCID",
    "doi": "DOI",
    "url": "URL",
    "urls": "URLs",
    "cff": "CFF",
    "python": "Python",
}
# What a text has to be, by the schema's name for its form.
FORMS = {
    "SPDX": "an SPDX license expression, such as Apache-2.0 or MIT OR BSD-3-Clause",
    "email": "an email address, such as name@example.org",
    "idn-email": "an email address, such as name@example.org",
    "pep440": "a version, such as 1.4.0",
    "pep508": "a requirement, such as httpx>=0.28",
    "pep508-identifier": "a name of letters, digits, “-”, “_” and “.”",
    "pep508-versionspec": "a range of versions, such as >=3.11",
    "pep517-backend-reference": "an importable object, such as hatchling.build",
    "trove-classifier": "a classifier of the package index",
    "uri": "a web address, such as https://example.org",
    "url": "a web address, such as https://example.org",
}


# Finding gaps


def is_valid(document: Mapping[str, Json], kind: Kind = CITATION) -> bool:
    """Whether a document keeps to its schema, and has what is wanted beside it."""
    return kind.validator.is_valid(document)


def find_gaps(document: Mapping[str, Json], kind: Kind = CITATION) -> list[Gap]:
    """List what is missing or wrong, one gap a place, in reading order.

    A gap has an ``id`` made from its place, so that it is the same gap the next time. Of somebody's
    own kind, what may be missing is asked for as well, and nothing is wrong with it.
    """
    found: dict[Key, ValidationError | None] = {}
    for error in _leaves(kind.validator.iter_errors(document)):
        for key in _places(error):
            found.setdefault(key, error)
    if kind.own:
        for name in kind.schema["properties"]:
            if name not in document:
                found.setdefault((name,), None)
    keys = sorted(found, key=lambda key: _sortable(key, kind))
    return [_gap(key, found[key], document, kind) for key in keys]


def _sortable(key: Key, kind: Kind) -> tuple[tuple[int, str], ...]:
    return tuple((part, "") if isinstance(part, int) else (kind.rank(part), part) for part in key)


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

    # A value with other fields was hardly meant as that, and one of another type even less.
    strange = {"type": 2, "additionalProperties": 1, "required": 1}

    def distance(branch: Sequence[ValidationError]) -> tuple[int, int]:
        own = [below for below in branch if not below.relative_path]
        return sum(strange.get(str(below.validator), 0) for below in own), len(branch)

    return min(branches.values(), key=distance)


def _places(error: ValidationError) -> list[Key]:
    """Return where an answer would go; a missing field is a place, too."""
    at: Key = tuple(error.absolute_path)
    if error.validator == "required":
        instance: Json = error.instance
        wanted: Json = error.validator_value
        return [(*at, name) for name in wanted if name not in instance]
    if error.validator == "additionalProperties":
        schema: Json = error.schema
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        holder: Json = error.instance
        unknown = [name for name in holder if name not in known]
        return [
            (*at, name) for name in unknown if not any(re.search(one, name) for one in patterns)
        ]
    return [at]


def _gap(key: Key, error: ValidationError | None, document: Mapping[str, Json], kind: Kind) -> Gap:
    field = _field(key, kind)
    found = _at(document, key)
    unknown = error is not None and error.validator == "additionalProperties"
    gap: Gap = {
        "id": ".".join(_id_part(part) for part in key) or "document",
        "path": _pointer(key),
        "title": _title(key, kind),
        "description": "" if unknown else _described(field),
        "kind": "removal" if unknown else _kind(key, field, kind),
        "schema": {"enum": [REMOVAL]} if unknown else _form(field, kind),
        "problem": None if error is None else _problem(error, found, field),
        "checked": None,
    }
    if error is None:
        gap["optional"] = True
    if found not in (None, "", []):
        gap["found"] = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    examples = field.get("examples") or field.get("items", {}).get("examples")
    if examples:
        gap["examples"] = [str(example) for example in examples[:3]]
    return gap


REMOVAL = "Take it out"
"""The one answer to a field that the format does not know."""


def _id_part(part: str | int) -> str:
    return str(part).replace("%", "%25").replace(".", "%2E")


def _form(field: Mapping[str, Json], kind: Kind, depth: int = 0) -> dict[str, Json]:
    """Return the part of a schema that a form is made of, its alternatives chosen."""
    known = _chosen(field)
    form: dict[str, Json] = {
        name: known[name]
        for name in ("type", "enum", "minItems", "minimum", "maximum", "minLength")
        if name in known
    }
    if depth > 0 and (said := _described(known)):
        form["description"] = said
    if "properties" in known and depth < schemas.FORM_DEPTH:
        names: Iterable[str] = known["properties"]
        if len(known["properties"]) > MANY and not kind.own:
            required = known.get("required", ())
            names = [name for name in MAIN if name in known["properties"]]
            names += [name for name in required if name not in names]
        form["properties"] = {
            name: {
                "title": _named(name, known["properties"][name], kind),
                **_form(known["properties"][name], kind, depth + 1),
            }
            for name in names
        }
        form["required"] = [name for name in known.get("required", ()) if name in names]
    if isinstance(known.get("items"), Mapping):
        form["items"] = _form(known["items"], kind, depth + 1)
    return form


def _pointer(key: Key) -> str:
    return "".join(f"/{_escape(str(part))}" for part in key)


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


def _field(key: Key, kind: Kind) -> dict[str, Json]:
    """Return what the schema says of a place."""
    field = _followed(kind.schema, kind)
    for part in key:
        field = _below(field, part, kind)
    inlined: dict[str, Json] = _inlined(_chosen(field, kind), kind)
    return inlined


def _inlined(field: Json, kind: Kind, depth: int = 0) -> Json:
    """Follow the references within, as deep as a form goes."""
    if isinstance(field, Mapping):
        known = _followed(field, kind) if depth < 8 else {**field, "$ref": None}
        known.pop("$ref", None)
        return {name: _inlined(value, kind, depth + 1) for name, value in known.items()}
    if isinstance(field, list):
        return [_inlined(one, kind, depth + 1) for one in field]
    return field


def _chosen(field: Mapping[str, Json], kind: Kind | None = None) -> dict[str, Json]:
    """Choose among alternatives: one value rather than several, what people answer in one field."""
    options = field.get("oneOf") or field.get("anyOf") or field.get("allOf") or ()
    followed = [_followed(one, kind) if kind else dict(one) for one in options]
    # Alternatives that only say what is required together are no choice of form, nor is nothing.
    typed = [_typed(one) for one in followed]
    real = [one for one in typed if one.get("type", "null") != "null" or "enum" in one]
    if not real:
        return _typed(field)
    simple = next((one for one in real if one.get("type") == "string"), real[0])
    said = ("title", "description", "$$description")
    return {**simple, **{name: field[name] for name in said if name in field}}


def _typed(field: Mapping[str, Json]) -> dict[str, Json]:
    """Say of which one type a field is, where it may be of several or is one given value."""
    known = dict(field)
    if isinstance(kinds := known.get("type"), list):
        known["type"] = next((one for one in kinds if one != "null"), "null")
    if "const" in known and "enum" not in known:
        known["enum"] = [known["const"]]
    return known


def _below(field: Mapping[str, Json], part: str | int, kind: Kind) -> dict[str, Json]:
    options = [field]
    while options:
        known = _followed(options.pop(0), kind)
        if isinstance(part, int) and "items" in known:
            return _followed(known["items"], kind)
        if part in known.get("properties", {}):
            return _followed(known["properties"][part], kind)
        for pattern, below in known.get("patternProperties", {}).items():
            if re.search(pattern, str(part)):
                return _followed(below, kind)
        for name in ("anyOf", "oneOf", "allOf"):
            options += known.get(name, ())
    return {}


def _followed(field: Mapping[str, Json], kind: Kind) -> dict[str, Json]:
    """Follow a reference; what stands beside it comes first, being said of this very field."""
    known = dict(field)
    while isinstance(known.get("$ref"), str):
        found = schemas.pointed(kind.schema, known.pop("$ref"))
        known = {**(found if isinstance(found, Mapping) else {}), **known}
    return known


def _title(key: Key, kind: Kind) -> str:
    """Return a place in words: "ORCID of author 1"."""
    if len(key) == 1 and isinstance(name := key[0], str):
        return _named(name, _field(key, kind), kind)
    parts: list[str] = []
    for part in key:
        if isinstance(part, int):
            one = {"dependencies": "dependency"}.get(parts[-1], parts[-1].removesuffix("s"))
            parts[-1] = f"{one} {part + 1}"
        else:
            parts.append(_words(part, start=False))
    # What a reader of this one document does not need to be told.
    while len(parts) > 1 and parts[0] in {kind.within, "URLs"}:
        del parts[0]
    title = " of ".join(reversed(parts)) or "document"
    return title[0].upper() + title[1:]


def _named(name: str, field: Mapping[str, Json], kind: Kind) -> str:
    """Return what a field is called: in its own schema's words, where it has some."""
    title = field.get("title") if kind.own else None
    return title if isinstance(title, str) and title.strip() else _words(name)


def _words(name: str, *, start: bool = True) -> str:
    words = " ".join(WORDS.get(word, word) for word in re.split("[-_]", name) if word)
    return words[:1].upper() + words[1:] if start else words


def _described(field: Mapping[str, Json]) -> str:
    said = field.get("description") or " ".join(field.get("$$description", ()))
    text = str(said).strip()
    for mark, plain in _MARKUP:
        text = mark.sub(plain, text)
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "?", "!", ")")) else f"{text}."


# Some schemas speak reStructuredText, which a page does not.
_MARKUP = (
    (re.compile(r"`([^`<]*?)\s*<[^>]*>`_+"), r"\1"),
    (re.compile(r":(pep|rfc):`(\d+)`"), lambda match: f"{match[1].upper()} {match[2]}"),
    (re.compile(r":\w+:`~?([^`<]+)[^`]*`"), r"\1"),
    (re.compile(r"`{1,2}([^`]*)`{0,2}"), r"\1"),
    (re.compile(r"\bMUST\b"), "must"),
)


def _kind(key: Key, field: Mapping[str, Json], kind: Kind) -> str:
    """Return what to ask with: the page has a form field for each kind."""
    last = str(key[-1]) if key else ""
    if "enum" in field:
        return "choice" if len(field["enum"]) <= FEW else "search"
    if field.get("format") in _BY_FORMAT:
        return _BY_FORMAT[field["format"]]
    if field.get("type") == "array":
        items = field.get("items")
        plain = not isinstance(items, Mapping) or _chosen(items).get("type") == "string"
        return "list" if plain else "form"
    if field.get("type") == "object" or "properties" in field:
        return "form"
    if field.get("type") == "boolean":
        return "choice"
    if field.get("type") in {"number", "integer"}:
        return "number"
    if last in kind.long or field.get("format") == "textarea" or field.get("maxLength", 0) > LONG:
        return "long"
    return "email" if last == "email" else "text"


_BY_FORMAT = {"date": "date", "uri": "url", "url": "url", "idn-email": "email", "email": "email"}


def _problem(error: ValidationError, found: Json, field: Mapping[str, Json]) -> str:
    if error.validator == "additionalProperties":
        return "The format does not know this field."
    if error.validator == "required" or found is None:
        return "It is missing."
    if found in ("", []):
        return "It is empty."
    if error.validator == "enum":
        choices = list(field.get("enum", ()))
        if len(choices) > FEW:
            return f"This is not one of the {len(choices)} values that the format knows."
        return f"This has to be {' or '.join(map(str, choices))}."
    if error.validator == "format" and error.validator_value in FORMS:
        return f"This is not {FORMS[error.validator_value]}."
    if error.validator == "format" or "date" in str(field.get("format", "")):
        return "This is not a date of the calendar, written as in 2020-12-31."
    if error.validator == "pattern":
        return f"This does not have the form of {_pattern(field)}."
    return f"{error.message[:200]}."


def _pattern(field: Mapping[str, Json]) -> str:
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


def _value(answer: Json, kind: str) -> Json:
    """Return what an answer puts into the document; None where it says nothing."""
    if isinstance(answer, str):
        return convert(answer, kind) if answer.strip() else None
    if isinstance(answer, Mapping):
        found = {name: _value(value, "long") for name, value in answer.items()}
        return {name: value for name, value in found.items() if value is not None} or None
    if isinstance(answer, list):
        items = (_value(one, "long") for one in answer)
        return [one for one in items if one is not None] or None
    return answer


def document_of(state: Mapping[str, Json]) -> dict[str, Json]:
    """Return the document with the answers of a session's state in it."""
    document = _source(state)
    known = {gap["id"]: gap for gap in _gaps_of(state)}
    for response in _list(state, "user_responses"):
        gap = known.get(str(response.get("gap")))
        value = _value(response.get("answer"), gap["kind"]) if gap else None
        if gap is not None and value is not None:
            _put(document, _tokens(gap["path"]), value, remove=gap["kind"] == "removal")
    return document


def file_of(state: Mapping[str, Json]) -> tuple[str, str, str]:
    """Return the document with its answers as a file: its name, its syntax and its text."""
    kind, syntax = _kind_of(state), _syntax(state)
    return kind.names[syntax], syntax, _written(document_of(state), kind, syntax)


def _written(document: Mapping[str, Json], kind: Kind, syntax: str) -> str:
    return documents.dump(kind.ordered(document), syntax)


def _source(state: Mapping[str, Json]) -> dict[str, Json]:
    source = _context(state).get("source")
    return copy.deepcopy(source) if isinstance(source, dict) else {}


def _context(state: Mapping[str, Json]) -> Mapping[str, Json]:
    context = state.get("context")
    return context if isinstance(context, Mapping) else {}


def _kind_of(state: Mapping[str, Json]) -> Kind:
    context = _context(state)
    named = context.get("kind")
    if named == "own":
        try:
            return schemas.kind_of(context.get("own"))
        except ValueError:
            # Somebody has put another one there.
            return _NO_KIND
    return KINDS.get(named, CITATION) if isinstance(named, str) else CITATION


_NO_KIND = schemas.kind_of({"properties": {"document": {"type": "string"}}})


def _syntax(state: Mapping[str, Json]) -> str:
    named = _context(state).get("syntax")
    return named if named in documents.SYNTAXES else _kind_of(state).syntax


def _tokens(pointer: str) -> list[str]:
    parts = pointer.split("/")[1:]
    return [part.replace("~1", "/").replace("~0", "~") for part in parts]


def _put(document: Json, tokens: Sequence[str], value: Json, *, remove: bool) -> None:
    """Put a value at a place, if there is one; parents that are missing are made."""
    at = document
    for token in tokens[:-1]:
        if isinstance(at, dict):
            at = at.setdefault(token, {})
        elif isinstance(at, list) and token.isdecimal() and int(token) < len(at):
            at = at[int(token)]
    last = tokens[-1] if tokens else ""
    if isinstance(at, dict) and tokens:
        if remove:
            at.pop(last, None)
        else:
            at[last] = value
    elif isinstance(at, list) and last.isdecimal() and int(last) < len(at) and not remove:
        at[int(last)] = value


# The session's state


def first_state(
    kind: Kind = CITATION, source: dict[str, Json] | None = None, syntax: str | None = None
) -> dict[str, Json]:
    """Return the state of a new session: an unfinished document and its questions."""
    document = copy.deepcopy(kind.first) if source is None else source
    written = _written(document, kind, syntax or kind.syntax)
    gaps = find_gaps(document, kind)
    return {
        "current_step": 0,
        "total_steps": len(gaps),
        "gaps_detected": gaps,
        "gaps_resolved": [],
        # There from the start: two devices that begin to answer do not make two of them.
        "user_responses": [_response(gap) for gap in gaps],
        "notes": "",
        "context": {
            "kind": kind.id,
            **({"own": kind.schema} if kind.own else {}),
            "syntax": syntax or kind.syntax,
            "document_name": kind.names[syntax or kind.syntax],
            "format": kind.format,
            "source": document,
            "original": written,
            "document": written,
            "valid": _is_done(gaps),
        },
    }


def _is_done(gaps: Iterable[Gap]) -> bool:
    return all(gap["problem"] is None for gap in gaps)


def _response(gap: Gap) -> dict[str, Json]:
    """Return an empty response: ``draft`` is what is being typed, ``answer`` what counts."""
    return {"id": gap["id"], "gap": gap["id"], "draft": _first_draft(gap), "answer": None}


def _first_draft(gap: Gap) -> Json:
    """Return what typing begins with; a form's parts are there, for several to type into at once.

    Elements have ids while they are being typed, and none in the answer.
    """
    form = gap["schema"]
    if gap["kind"] != "form":
        return ""
    if form.get("type") != "array":
        return {}
    items = form.get("items", {})
    if "properties" not in items or "id" in items["properties"]:
        return []
    return [{"id": "1"}]


def answer_touched(patch: Iterable[Mapping[str, Json]]) -> bool:
    """Whether a commit may have changed an answer; what is only typed so far does not."""
    return any(_ANSWERS.fullmatch(str(op.get("path"))) for op in patch)


_ANSWERS = re.compile(
    r"|/user_responses(/[^/]+(/answer(/.*)?|/gap|/id)?)?|/gaps_detected(/.*)?"
    r"|/context(/syntax|/kind|/own(/.*)?|/source(/.*)?)?"
)


def reconcile(state: Mapping[str, Json]) -> list[Op]:
    """Return what has to be done for a state to tell the truth about its answers; mostly nothing.

    A function of the state alone, so that it may be called at any time, by anybody, again.
    """
    kind, syntax = _kind_of(state), _syntax(state)
    document = document_of(state)
    known = {gap["id"]: gap for gap in _gaps_of(state)}
    now = _told_where_asked(find_gaps(document, kind), known)
    answers = {str(one.get("gap")): one.get("answer") for one in _list(state, "user_responses")}
    ops: list[Op] = []
    for gap_id, gap in known.items():
        answer = answers.get(gap_id)
        told = {
            "problem": now[gap_id]["problem"] if gap_id in now else None,
            "checked": answer,
        }
        ops += _sets(f"/gaps_detected/#{_escape(gap_id)}", gap, told)
    for gap_id, gap in now.items():
        if gap_id not in known:
            # An answer may open another question.
            ops.append({"op": "insert", "path": "/gaps_detected", "value": gap})
            ops.append({"op": "insert", "path": "/user_responses", "value": _response(gap)})
    ops += _resolve(state, [gap for gap in known.values() if gap["id"] not in now], answers)
    steps = len(known.keys() | now.keys())
    ops += _sets("", state, {"total_steps": steps})
    if isinstance(context := state.get("context"), Mapping):
        told = {
            "document_name": kind.names[syntax],
            "original": _written(_source(state), kind, syntax),
            "document": _written(document, kind, syntax),
            "valid": _is_done(now.values()),
        }
        ops += _sets("/context", context, told)
    return ops


def _told_where_asked(found: Iterable[Gap], known: Mapping[str, Gap]) -> dict[str, Gap]:
    """Say what is wrong within an answer of several parts at its own form; no gap of its own."""
    forms = [gap for gap in known.values() if gap["kind"] == "form"]
    now: dict[str, Gap] = {}
    for gap in found:
        form = next((one for one in forms if gap["path"].startswith(f"{one['path']}/")), None)
        if gap["id"] in known or form is None:
            now[gap["id"]] = gap
        else:
            problem = f"{gap['title']}: {gap['problem']}"
            now.setdefault(form["id"], {**form, "problem": problem})
    return now


def _resolve(
    state: Mapping[str, Json], gaps: Sequence[Gap], answers: Mapping[str, Json]
) -> list[Op]:
    before = {str(one["id"]): one for one in _list(state, "gaps_resolved") if "id" in one}
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
        {"op": "unset", "path": f"/gaps_resolved/#{_escape(gap_id)}"}
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
    return [gap for gap in found if all(isinstance(gap.get(name), str) for name in texts)]


def _list(state: Mapping[str, Json], name: str) -> list[dict[str, Json]]:
    """Return a list of the state; whoever may write the session may have put anything there."""
    value = state.get(name)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
