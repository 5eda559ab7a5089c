"""`reattach types`, and the generator behind it; the compiler's word on it is in packages/react."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, create_model
from typer.testing import CliRunner, Result

from reattach import wire
from reattach.cli import main
from reattach.typescript import Untranslatable, declarations, of_model
from tests.support.paths import BIN, NODE, ROOT
from tests.support.review import Review, Tree

GENERATED = ROOT / "packages" / "react" / "test" / "review.gen.ts"
MODEL = "tests.support.review:Review"


def types(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["types", *map(str, arguments)])


def tsc(*files: Path) -> str:
    """Compile under the settings of this checkout; return what the compiler had to say."""
    settings = {
        "extends": str(ROOT / "tsconfig.base.json"),
        "compilerOptions": {"noEmit": True},
        "files": [str(file) for file in files],
    }
    project = files[0].parent / "tsconfig.json"
    project.write_text(json.dumps(settings))
    command = [*NODE[:-1], "npx", "tsc", "--project", str(project)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout


def test_what_the_type_tests_use_is_what_the_model_says() -> None:
    checked = types(MODEL, "--output", GENERATED, "--check")
    assert checked.exit_code == 0, checked.stderr


def test_without_an_output_it_is_printed() -> None:
    command = [str(BIN / "reattach"), "types", MODEL]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == GENERATED.read_text()


def test_a_stale_file_fails_the_check_and_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "state.ts"
    missing = types(MODEL, "-o", target, "--check")
    assert missing.exit_code == 1
    assert not target.exists()
    target.write_text("old")
    stale = types(MODEL, "-o", target, "--check")
    assert stale.exit_code == 1
    assert f"run reattach types {MODEL}" in " ".join(stale.stderr.split())
    assert target.read_text() == "old"
    assert types(MODEL, "-o", target).exit_code == 0
    assert types(MODEL, "-o", target, "--check").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((MODEL, "--check"), 2, "name it with --output"),
        (("tests.support.review:Nothing",), 2, "expected tests.support.review:Nothing to be a"),
        (("tests.support.review:Stage",), 2, "to be a pydantic model, got an object of type"),
        (("tests.support.review",), 2, "expected package.module:Model, got"),
        (("no.such.module:Model",), 2, "there is no module 'no.such.module'"),
        ((MODEL, "-o", "/no/such/folder/state.ts"), 1, "No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: tuple[str, ...], code: int, message: str
) -> None:
    failed = types(*arguments)
    assert failed.exit_code == code
    assert message in " ".join(failed.stderr.split())
    assert isinstance(failed.exception, SystemExit)


def test_the_compiler_takes_it_and_knows_its_fields(tmp_path: Path) -> None:
    (tmp_path / "review.ts").write_text(of_model(Review))
    (tmp_path / "tree.ts").write_text(of_model(Tree))
    use = tmp_path / "use.ts"
    use.write_text(
        'import type { Review } from "./review";\n'
        'import type { Tree } from "./tree";\n'
        "export function fine(review: Review, tree: Tree): (string | undefined)[] {\n"
        '  return [review.title, review.comments[0]?.replies[0]?.text, tree.branches["a"]?.x];\n'
        "}\n"
    )
    said = tsc(use)
    assert "Property 'x' does not exist on type 'Tree'" in said
    assert said.count("error") == 1, said


def test_a_model_that_refers_to_itself() -> None:
    assert of_model(Tree) == "export interface Tree {\n  branches: { [key: string]: Tree };\n}\n"


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        (True, "unknown"),
        (False, "never"),
        ({}, "unknown"),
        ({"anyOf": [{"type": "string"}, {}]}, "unknown"),
        ({"type": ["string", "null"]}, "string | null"),
        ({"const": 'say "a"'}, r'"say \"a\""'),
        ({"enum": [True, None, 1.5, "ä"]}, 'true | null | 1.5 | "ä"'),
        ({"type": "array"}, "unknown[]"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, '("a" | "b")[]'),
        ({"type": "array", "items": {"const": "a b"}}, '"a b"[]'),
        ({"type": "array", "prefixItems": [{"type": "null"}], "minItems": 1}, "[null]"),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "string"}},
            "[null?, ...string[]]",
        ),
        ({"type": "object"}, "{ [key: string]: unknown }"),
        ({"type": "object", "additionalProperties": False}, "{ [key: string]: never }"),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "string"}}},
            "{ [key: string]: string }",
        ),
        (
            {"type": "object", "properties": {"a b": {"type": "null"}}, "required": ["a b"]},
            '{ "a b": null }',
        ),
        (
            {"type": "object", "propertyNames": {"enum": ["a"]}, "additionalProperties": True},
            '{ [Key in "a"]?: unknown }',
        ),
        ({"allOf": [{"type": "string"}, {"enum": ["a", "b"]}]}, 'string & ("a" | "b")'),
    ],
)
def test_a_schema_in_typescript(schema: Any, written: str) -> None:
    held = {"type": "object", "properties": {"v": schema}, "required": ["v"]}
    assert declarations({"T": held}) == f"export interface T {{\n  v: {written};\n}}\n"


def test_names_that_typescript_does_not_take() -> None:
    schemas = {name: {"type": "null"} for name in ("delete", "Box[int]", "Box_int", "1st", "日本")}
    made = [line.split()[2] for line in declarations(schemas).splitlines() if line]
    assert made == ["delete_", "Box_int", "Box_int_", "_1st", "Model"]


def test_long_unions_go_one_by_line() -> None:
    options = [f"option number {n}" for n in range(8)]
    made = declarations({"T": {"enum": options}})
    assert made.splitlines()[1] == '  | "option number 0"'
    assert max(map(len, made.splitlines())) <= 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: declarations({"T": {"$ref": "#/$defs/Gone"}}), "a known type at T"),
        (lambda: declarations({"T": {"type": "stream"}}), 'at T, got {"type": "stream"}'),
        (lambda: declarations({"T": {"not": {"type": "null"}}}), "at T, got"),
        (lambda: of_model(create_model("M", f=(Callable[[], None], ...))), "expected M to have"),
    ],
)
def test_what_has_no_typescript_says_where(make: Callable[[], str], message: str) -> None:
    with pytest.raises(Untranslatable, match=message.replace("{", r"\{")):
        make()


def test_two_models_of_one_name_are_refused() -> None:
    inner: type[BaseModel] = create_model("Review", a=(int, 1))
    outer: type[BaseModel] = create_model("Review", inner=(inner, ...))
    with pytest.raises(Untranslatable, match="one model of the name Review, got two"):
        of_model(outer)


def test_the_messages_types_are_what_wire_says() -> None:
    script = ROOT / "tools" / "wire_types.py"
    checked = subprocess.run([sys.executable, script, "--check"], check=False)
    assert checked.returncode == 0


def test_every_frame_that_the_server_sends_is_one_of_the_types() -> None:
    """What is described beside the fields that are not checked is what the decoder would check."""
    update = wire.StateUpdate(
        2,
        [{"op": "move", "from": "/a", "path": "/b"}, {"op": "str_del", "path": "/t", "pos": 0}],
        wire.By("c", 1),
        5,
    )
    read = msgspec.json.decode(wire.encode(update), type=wire.ServerFrame)
    assert read == update
    assert msgspec.convert(update.patch[0], wire.PatchOperation) == wire.MoveStep("/a", "/b")
    with pytest.raises(msgspec.ValidationError, match="len"):
        msgspec.convert(update.patch[1], wire.PatchOperation)
