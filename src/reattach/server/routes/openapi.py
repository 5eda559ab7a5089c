"""What `/openapi.json` says of the routes, whose bodies are read by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from reattach.server import models
from reattach.server.problems import MEDIA_TYPE

__all__ = ["Add", "content", "problem", "schema_of"]


class Add:
    """Adds routes to a router, described by their docstrings and models."""

    def __init__(self, router: APIRouter) -> None:
        """Add to ``router``."""
        self.router = router

    def __call__(
        self,
        method: str,
        path: str,
        endpoint: Callable[..., Any],
        answer: type[BaseModel] | None,
        *,
        status: int = 200,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        """Add one; ``body`` has the schema of each media type that it takes."""
        self.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            status_code=status,
            summary=(endpoint.__doc__ or "").rstrip("."),
            responses={status: {"model": answer} if answer else {}},
            openapi_extra=None if body is None else {"requestBody": content(body)},
        )


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema with its parts in place, since bodies are not FastAPI's."""
    schema = model.model_json_schema(ref_template="{model}")
    parts = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolve(parts[value["$ref"]])
            return {key: resolve(item) for key, item in value.items()}
        return [resolve(item) for item in value] if isinstance(value, list) else value

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def content(by_type: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a body by the schema of each media type."""
    by_kind = {kind: {"schema": schema} for kind, schema in by_type.items()}
    return {"required": True, "content": by_kind}


def problem(description: str) -> dict[str, Any]:
    """Describe an answer that is a problem (RFC 9457)."""
    schema = schema_of(models.Problem)
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}
