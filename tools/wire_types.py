"""Writes the TypeScript of the messages, from `src/reattach/wire.py`.

.venv/bin/python tools/wire_types.py           # make types
.venv/bin/python tools/wire_types.py --check   # part of make lint: fails when they are stale
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from reattach import wire
from reattach.typescript import declarations

TARGET = Path(__file__).resolve().parent.parent / "packages/client/src/core/wire.gen.ts"

HEAD = """\
/**
 * The frames of the protocol, and what they carry (protocol, sections 3 to 5). Made from
 * src/reattach/wire.py by `make types`.
 */

import type { Json } from "./json.js";

"""


def components(types: Sequence[Any], *, sent: bool) -> dict[str, Any]:
    """Return the schemas of types and of what they refer to, by name.

    What the server has ``sent`` has every field that has a default; what it reads may leave it out.
    """
    _, schemas = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    if sent:
        for schema in schemas.values():
            fields = schema.get("properties", {})
            missing = [name for name, field in fields.items() if "default" in field]
            schema["required"] = [*schema.get("required", ()), *missing]
    return schemas


def union(kind: Any) -> dict[str, Any]:
    """Return the schema of a union of structs."""
    (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    return {"anyOf": schema["anyOf"]}


def text() -> str:
    """Return the whole file."""
    read = components([wire.Frame, wire.Operation], sent=False)
    # How an operation arrives is the server's affair; what it may be is the protocol's.
    del read["Op"]
    read["Change"]["properties"]["ops"]["items"] = {"$ref": "#/$defs/Operation"}
    sent = components([wire.ServerFrame, wire.Conflict, wire.PatchOperation], sent=True)
    twice = read.keys() & sent.keys()
    if twice:
        raise SystemExit(f"expected each message to go one way, got both for {sorted(twice)}")
    unions = {
        "Operation": union(wire.Operation),
        "ClientFrame": union(wire.Frame),
        "PatchOperation": union(wire.PatchOperation),
        "Commit": union(wire.Commit),
        "ServerFrame": union(wire.ServerFrame),
    }
    schemas = {**unions, **read, **sent}
    made = declarations(schemas, anything="Json", readonly=True)
    return HEAD + made.replace("``", "`")


def main() -> None:
    """Write the file, or say that it is stale."""
    made = text()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(made)
    elif not TARGET.exists() or TARGET.read_text() != made:
        raise SystemExit(
            f"expected {TARGET.name} to be what src/reattach/wire.py says: run `make types`, and"
            " look at what has become of the client"
        )


if __name__ == "__main__":
    main()
