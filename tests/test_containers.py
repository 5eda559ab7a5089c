"""`Dockerfile` and `compose.yaml`, as far as they can be held to account without Docker."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from typing import Any

import jsonschema
import yaml

from reattach.settings import Settings
from tests.support.paths import BIN, ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def instructions(name: str) -> list[str]:
    """What follows an instruction in the last stage, which is the image."""
    image = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    return re.findall(rf"^{name}\s+(.*)$", image, re.MULTILINE)


def arguments_of(*command: str) -> set[str]:
    shown = subprocess.run(
        [str(BIN / "reattach"), *command, "--help"], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"--[a-z-]+", shown.stdout))


def specification() -> Any:
    schema = json.loads((ROOT / "tests/data/compose_spec.json").read_text())
    return jsonschema.Draft201909Validator(schema)


def test_the_compose_file_keeps_to_the_specification() -> None:
    specification().validate(COMPOSE)


def test_a_compose_file_that_does_not_is_noticed() -> None:
    services: dict[str, Any] = COMPOSE["services"]
    wrong = {**COMPOSE, "services": {**services, "cache": {"imagee": "valkey"}}}
    assert not specification().is_valid(wrong)


def test_every_service_that_another_waits_for_can_be_waited_for() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], other


def test_every_setting_of_the_compose_file_is_one_of_ours() -> None:
    for name in COMPOSE["services"]["reattach"]["environment"]:
        assert name.removeprefix("REATTACH_").lower() in Settings.model_fields, name


def test_the_image_does_not_run_as_root_and_says_whether_it_is_well() -> None:
    (user,) = instructions("USER")
    assert user not in {"root", "0"}
    (health,) = instructions("HEALTHCHECK")
    assert "/healthz" in health


def test_the_commands_of_the_image_and_of_compose_exist() -> None:
    (entry,) = instructions("ENTRYPOINT")
    (command,) = instructions("CMD")
    assert json.loads(entry) == ["reattach"]
    said = [json.loads(command), COMPOSE["services"]["migrate"]["command"]]
    for name, *rest in said:
        options = {word for word in rest if word.startswith("--")}
        assert options <= arguments_of(name), shlex.join([name, *rest])


def test_everything_that_is_copied_into_the_image_is_let_in() -> None:
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for name in let_in:
        assert (ROOT / name).exists(), name
    # What the build reads at the top of the checkout.
    needed = re.findall(r"\b[\w.-]+\.(?:json|toml|txt|py|ts)\b", (ROOT / "Makefile").read_text())
    top = {name for name in needed if (ROOT / name).is_file()}
    assert top - {"conftest.py"} <= let_in
