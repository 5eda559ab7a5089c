"""The kinds of document that the example knows, each with its schema and an unfinished one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeAlias

from jsonschema import Draft7Validator, FormatChecker
from jsonschema.protocols import Validator
from validate_pyproject import formats

from . import documents

__all__ = ["CITATION", "FORMATS", "KINDS", "PYPROJECT", "Kind"]

Json: TypeAlias = Any

DATA: Final = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Kind:
    """A kind of document: where its schema comes from, and how people call and order its parts."""

    id: str
    format: str
    syntax: str
    sample: str
    """The file, under data/, of an unfinished document to begin with; "": an empty one."""
    names: Mapping[str, str]
    """What its file is called, for each syntax."""
    order: tuple[str, ...]
    """In which the document is read and the questions are asked; what is not named comes behind."""
    read_schema: Callable[[], dict[str, Json]]
    wanted: Mapping[str, Json]
    """What the schema leaves open and a reader misses: a JSON schema beside the published one."""
    long: frozenset[str]
    """The texts that want room; a schema does not say so."""
    within: str = ""
    """The table that nearly everything stands in, and that no title needs to name."""
    own: bool = False
    """Whether it is somebody's own: all of its fields are asked for, under the schema's titles."""
    make_validator: Callable[[dict[str, Json]], Validator] | None = None
    """Makes what checks documents, where that is not by the schema and what is wanted alone."""

    @cached_property
    def schema(self) -> dict[str, Json]:
        """The JSON schema of the format."""
        return self.read_schema()

    @cached_property
    def validator(self) -> Validator:
        """Checks documents against the schema and what is wanted beside it."""
        if self.make_validator is not None:
            return self.make_validator(self.schema)
        return Draft7Validator(
            {"allOf": [self.schema, self.wanted], "definitions": self.schema["definitions"]},
            format_checker=FORMATS,
        )

    def rank(self, name: str) -> int:
        """Where a part of the document stands."""
        return self.order.index(name) if name in self.order else len(self.order)

    def ordered(self, document: Mapping[str, Json]) -> dict[str, Json]:
        """Return the document with its parts, and those of its main table, in reading order."""
        parts = {key: document[key] for key in sorted(document, key=self.rank)}
        main = parts.get(self.within)
        if isinstance(main, dict):
            parts[self.within] = {key: main[key] for key in sorted(main, key=self.rank)}
        return parts

    @cached_property
    def first(self) -> dict[str, Json]:
        """The unfinished document to begin with."""
        if not self.sample:
            return {}
        text = (DATA / self.sample).read_text(encoding="utf-8")
        return documents.load(text, self.syntax)


# "format" alone is a remark in JSON Schema; a 31st of June should not pass, though.
FORMATS: Final = FormatChecker(["date"])
for _name, _check in {
    "SPDX": formats.SPDX,
    "import-name": formats.import_name,
    "pep440": formats.pep440,
    "pep508": formats.pep508,
    "pep508-identifier": formats.pep508_identifier,
    "pep508-versionspec": formats.pep508_versionspec,
    "pep517-backend-reference": formats.pep517_backend_reference,
    "python-entrypoint-group": formats.python_entrypoint_group,
    "python-entrypoint-name": formats.python_entrypoint_name,
    "python-entrypoint-reference": formats.python_entrypoint_reference,
    "trove-classifier": formats.trove_classifier,
    "url": lambda text: re.fullmatch(r"https?://[^\s/]+(/\S*)?", text) is not None,
    "idn-email": lambda text: re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s.]+", text) is not None,
}.items():
    # The schema's own "type" says what is no text.
    FORMATS.checks(_name)(
        lambda value, check=_check: not isinstance(value, str) or bool(check(value))
    )


@cache
def _citation_schema() -> dict[str, Json]:
    found: dict[str, Json] = json.loads((DATA / "schema.json").read_text(encoding="utf-8"))
    return found


@cache
def _pyproject_schema() -> dict[str, Json]:
    """Put together what validate-pyproject ships: the file's schema and its main table's."""
    package = resources.files("validate_pyproject")
    file, project = (
        json.loads(package.joinpath(f"{name}.schema.json").read_text(encoding="utf-8"))
        for name in ("pyproject_toml", "project_metadata")
    )
    definitions: dict[str, dict[str, Json]] = project.pop("definitions")
    for definition in definitions.values():
        del definition["$id"]
    del project["$id"]
    return {
        **{name: value for name, value in file.items() if name != "$id"},
        "properties": {**file["properties"], "project": project},
        "definitions": definitions,
    }


CITATION: Final = Kind(
    id="citation",
    format="Citation File Format 1.2.0",
    syntax="yaml",
    sample="CITATION.cff",
    names={"yaml": "CITATION.cff", "json": "CITATION.json", "toml": "CITATION.toml"},
    order=(
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
    ),
    read_schema=_citation_schema,
    wanted={},
    long=frozenset({"abstract", "description", "notes"}),
)

PYPROJECT: Final = Kind(
    id="pyproject",
    format="Python project metadata",
    syntax="toml",
    # Under its own name, tools that pass by would take it for theirs.
    sample="unfinished-pyproject.toml",
    names={"toml": "pyproject.toml", "json": "pyproject.json", "yaml": "pyproject.yaml"},
    order=(
        "build-system",
        "project",
        "name",
        "version",
        "description",
        "readme",
        "requires-python",
        "license",
        "authors",
        "keywords",
        "classifiers",
        "dependencies",
        "urls",
    ),
    read_schema=_pyproject_schema,
    # The format asks for a name and a version alone; who finds the package asks for more.
    wanted={
        "required": ["project"],
        "properties": {
            "project": {
                "required": ["description", "requires-python", "license", "authors"],
                "properties": {"authors": {"minItems": 1}, "description": {"minLength": 1}},
            }
        },
    },
    long=frozenset(),
    within="project",
)

KINDS: Final = {kind.id: kind for kind in (CITATION, PYPROJECT)}
