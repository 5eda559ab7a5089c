"""What the example knows of Citation files: gaps, answers, and a state that tells the truth."""

from __future__ import annotations

import copy
import json
import tomllib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from examples.gap_resolution import documents, gaps
from examples.gap_resolution.kinds import CITATION, KINDS, PYPROJECT, Kind

State = dict[str, Any]

ANSWERS = {
    "title": "Tidewatch",
    "message": "Please cite this software using these metadata.",
    "type": "software",
    "abstract": "Reads tide gauges.\n\nTells when the water comes.",
    "authors.0.orcid": "https://orcid.org/0000-0002-1825-0097",
    "authors.1.email": "sam@example.org",
    "keywords": "tides\nsea level\ntides",
    "license": "Apache-2.0",
    "date-released": "2026-06-30",
}


def answered(state: State, answers: dict[str, Any]) -> State:
    state = copy.deepcopy(state)
    for response in state["user_responses"]:
        if response["gap"] in answers:
            response["answer"] = answers[response["gap"]]
    return state


def reconciled(state: State) -> State:
    """The state after what reconcile wants, and proof that it then wants nothing more."""
    after = applied(state, gaps.reconcile(state))
    assert gaps.reconcile(after) == []
    return after


def applied(state: State, ops: list[dict[str, Any]]) -> State:
    """As the protocol has it, as far as reconcile makes use of it."""
    state = copy.deepcopy(state)
    for op in ops:
        *parents, last = op["path"].split("/")[1:]
        at: Any = state
        for token in parents:
            at = element(at, token) if isinstance(at, list) else at[token]
        if op["op"] == "insert":
            kept = [one for one in at[last] if one["id"] != op["value"]["id"]]
            at[last] = [*kept, op["value"]]
        elif op["op"] == "unset":
            at.remove(element(at, last))
        else:
            at[last] = op["value"]
    return state


def element(items: list[Any], token: str) -> Any:
    return next(one for one in items if f"#{one['id']}" == token)


def gap(state: State, gap_id: str) -> dict[str, Any]:
    found: dict[str, Any] = element(state["gaps_detected"], f"#{gap_id}")
    return found


def test_the_example_has_gaps_of_every_kind_in_reading_order() -> None:
    state = gaps.first_state()
    found = {gap["id"]: gap["kind"] for gap in state["gaps_detected"]}
    assert list(found.items()) == [
        ("title", "text"),
        ("message", "text"),
        ("type", "choice"),
        ("abstract", "long"),
        ("authors.0.orcid", "url"),
        ("authors.1.email", "email"),
        ("keywords", "list"),
        ("license", "search"),
        ("date-released", "date"),
    ]
    assert state["total_steps"] == len(found)
    assert state["context"]["valid"] is False
    assert [one["id"] for one in state["user_responses"]] == list(found)


def test_a_gap_says_what_the_schema_says() -> None:
    state = gaps.first_state()
    assert gap(state, "authors.0.orcid") == {
        "id": "authors.0.orcid",
        "path": "/authors/0/orcid",
        "title": "ORCID of author 1",
        "description": "The person's ORCID.",
        "kind": "url",
        "schema": {"type": "string"},
        "problem": "This does not have the form of https://orcid.org/0000-0002-1825-0097.",
        "checked": None,
        "found": "0000-0002-1825-0097",
    }
    assert gap(state, "title")["problem"] == "It is missing."
    assert gap(state, "keywords")["problem"] == "It is empty."
    assert gap(state, "type")["schema"] == {"type": "string", "enum": ["dataset", "software"]}
    assert "MIT" in gap(state, "license")["schema"]["enum"]
    assert gap(state, "date-released")["description"] == "The date the work has been released."


@pytest.mark.parametrize(
    ("document", "ids"),
    [
        ({}, ["cff-version", "title", "message", "authors"]),
        ({"authors": [{}]}, ["cff-version", "title", "message"]),
        ({"authors": [{"name": ""}]}, ["cff-version", "title", "message", "authors.0.name"]),
        (
            {"authors": [{"name": "Port", "country": "XX"}]},
            ["cff-version", "title", "message", "authors.0.country"],
        ),
    ],
)
def test_gaps_of_other_documents(document: State, ids: list[str]) -> None:
    assert [gap["id"] for gap in gaps.find_gaps(document)] == ids


def test_all_answers_make_a_valid_document() -> None:
    state = reconciled(answered(gaps.first_state(), ANSWERS))
    assert state["context"]["valid"] is True
    assert [one["id"] for one in state["gaps_resolved"]] == list(ANSWERS)
    assert {one["problem"] for one in state["gaps_detected"]} == {None}

    # Also for a reader that knows nothing of ours: its dates are text, since they stand in quotes.
    document = yaml.safe_load(state["context"]["document"])
    assert gaps.is_valid(document)
    assert document["keywords"] == ["tides", "sea level"]
    assert document["abstract"] == ANSWERS["abstract"]
    assert document["authors"][1]["email"] == "sam@example.org"
    assert list(document)[:3] == ["cff-version", "title", "message"]
    assert documents.load(state["context"]["document"], "yaml") == document


def test_a_wrong_answer_is_told_and_another_one_mends_it() -> None:
    state = reconciled(answered(gaps.first_state(), {"date-released": "2026-06-31"}))
    assert "calendar" in gap(state, "date-released")["problem"]
    assert gap(state, "date-released")["checked"] == "2026-06-31"
    assert state["gaps_resolved"] == []

    state = reconciled(answered(state, {"date-released": "2026-06-30"}))
    assert gap(state, "date-released")["problem"] is None
    assert [one["answer"] for one in state["gaps_resolved"]] == ["2026-06-30"]


def test_an_answer_taken_back_opens_its_gap_again() -> None:
    first = gaps.first_state()
    state = reconciled(answered(first, {"title": "Tidewatch"}))
    assert "title: Tidewatch" in state["context"]["document"]
    state = reconciled(answered(state, {"title": None}))
    assert state == first


def test_a_draft_is_no_answer() -> None:
    state = gaps.first_state()
    state["user_responses"][0]["draft"] = "Tidew"
    assert gaps.reconcile(state) == []


@pytest.mark.parametrize(
    ("patch", "touched"),
    [
        ([{"op": "replace", "path": "/user_responses/0/draft", "value": "T"}], False),
        ([{"op": "str_ins", "path": "/user_responses/0/draft", "pos": 0, "str": "T"}], False),
        ([{"op": "replace", "path": "/current_step", "value": 1}], False),
        ([{"op": "replace", "path": "/context/document", "value": ""}], False),
        ([], False),
        ([{"op": "replace", "path": "/user_responses/0/answer", "value": "T"}], True),
        ([{"op": "replace", "path": "/user_responses/0", "value": {}}], True),
        ([{"op": "remove", "path": "/user_responses"}], True),
        ([{"op": "replace", "path": "", "value": {}}], True),
        ([{"op": "replace", "path": "/user_responses/0/answer/0/name", "value": "T"}], True),
        ([{"op": "replace", "path": "/context/syntax", "value": "json"}], True),
        ([{"op": "str_ins", "path": "/notes", "pos": 0, "str": "x"}], False),
        ([{"op": "move", "from": "/user_responses/1", "path": "/user_responses/0"}], True),
    ],
)
def test_which_commits_touch_an_answer(patch: list[dict[str, Any]], touched: bool) -> None:
    assert gaps.answer_touched(patch) is touched


@pytest.mark.parametrize(
    ("answer", "kind", "value"),
    [
        ("  Tidewatch \n", "text", "Tidewatch"),
        ("one\n line", "text", "one line"),
        ("a\r\n\r\nb ", "long", "a\n\nb"),
        ("tides, sea level;\n gauges,,tides", "list", ["tides", "sea level", "gauges"]),
        ("3", "number", 3),
        ("3.5", "number", 3.5),
        ("three", "number", "three"),
    ],
)
def test_what_an_answer_means(answer: str, kind: str, value: Any) -> None:
    assert gaps.convert(answer, kind) == value


@pytest.mark.parametrize("syntax", documents.SYNTAXES)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=200))
def test_any_text_reads_back_as_it_was_written(syntax: str, text: str) -> None:
    document = {"title": text, "keywords": [text], "person": {"name": text}}
    assert documents.load(documents.dump(document, syntax), syntax) == document


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("syntax", documents.SYNTAXES)
def test_an_unfinished_document_reads_back_in_every_syntax(kind: Kind, syntax: str) -> None:
    text = documents.dump(kind.first, syntax)
    assert documents.load(text, syntax) == kind.first
    assert documents.syntax_of(text, kind.syntax) == syntax or syntax == "yaml"
    state = gaps.first_state(kind, documents.load(text, syntax), syntax)
    assert gaps.reconcile(state) == []


@pytest.mark.parametrize("text", ["[]", "title: [", "- a\n- b", "= 1", '{"a": 1', "\0"])
def test_what_is_no_document_is_refused(text: str) -> None:
    for syntax in documents.SYNTAXES:
        with pytest.raises(ValueError, match="expected"):
            documents.load(text, syntax)


PYPROJECT_ANSWERS = {
    "project.name": "tidewatch",
    "project.version": "2.1.0",
    "project.description": "Tells when the water comes.",
    "project.readme.content-type": "text/markdown",
    "project.requires-python": ">=3.11",
    "project.license": "Apache-2.0",
    "project.authors": [{"name": "Alex Example", "email": "alex@example.org"}, {"name": " "}],
    "project.dependencies.1": "numpy>=2",
    "project.urls.Homepage": "https://git.example.org/coast/tidewatch",
}


def test_a_pyproject_has_gaps_of_its_own() -> None:
    state = gaps.first_state(PYPROJECT)
    assert [one["id"] for one in state["gaps_detected"]] == list(PYPROJECT_ANSWERS)
    assert gap(state, "project.version")["description"] == (
        "The version of the project as supported by PEP 440."
    )
    assert "requirement" in gap(state, "project.dependencies.1")["problem"]
    authors = gap(state, "project.authors")
    assert authors["kind"] == "form"
    assert list(authors["schema"]["items"]["properties"]) == ["name", "email"]

    state = reconciled(answered(state, PYPROJECT_ANSWERS))
    assert state["context"]["valid"] is True
    document = tomllib.loads(state["context"]["document"])
    assert gaps.is_valid(document, PYPROJECT)
    assert document["project"]["authors"] == [{"name": "Alex Example", "email": "alex@example.org"}]
    assert document["project"]["readme"] == {"file": "README", "content-type": "text/markdown"}


def test_another_syntax_is_written_when_it_is_asked_for() -> None:
    state = gaps.first_state(PYPROJECT)
    state["context"]["syntax"] = "json"
    state = reconciled(state)
    assert state["context"]["document_name"] == "pyproject.json"
    assert json.loads(state["context"]["document"]) == PYPROJECT.first
    assert gaps.file_of(state)[:2] == ("pyproject.json", "json")


def test_a_field_that_the_format_does_not_know_is_taken_out() -> None:
    first = gaps.first_state(CITATION, CITATION.first | {"colour": "green"})
    assert gap(first, "colour")["kind"] == "removal"
    state = reconciled(answered(first, {"colour": gap(first, "colour")["schema"]["enum"][0]}))
    assert gap(state, "colour")["problem"] is None
    assert "colour" not in state["context"]["document"]


def test_a_parent_that_is_missing_is_made() -> None:
    state = gaps.first_state(PYPROJECT, {})
    assert [one["id"] for one in state["gaps_detected"]] == ["project"]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@given(st.sampled_from(["gaps_detected", "gaps_resolved", "user_responses", "context"]), JSON)
def test_whatever_else_writes_the_state_nothing_breaks(name: str, value: Any) -> None:
    state = gaps.first_state()
    state[name] = value
    for op in gaps.reconcile(state):
        assert op["op"] in {"set", "insert", "unset"}


def test_the_schema_is_the_published_one() -> None:
    schema = json.loads((gaps.DATA / "schema.json").read_text())
    assert schema["$id"] == "https://citation-file-format.github.io/1.2.0/schema.json"
    assert "Apache License" in (gaps.DATA / "LICENSE").read_text()


def test_what_is_wrong_within_a_form_is_told_at_the_form() -> None:
    first = gaps.first_state(PYPROJECT)
    state = reconciled(answered(first, {"project.authors": [{"email": "alex@example"}]}))
    assert len(state["gaps_detected"]) == len(first["gaps_detected"])
    assert gap(state, "project.authors")["problem"].startswith("Email of author 1: This is not")
