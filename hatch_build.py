"""Completes the wheel: the examples with their built pages, so that its user needs no Node.js."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

EXAMPLES = ("gap_resolution",)
INSPECTOR = "src/reattach/server/inspector/pages"
# The page's source, and what running and building leave behind.
LEFT_OUT = {"web", "node_modules", "__pycache__"}


class CustomBuildHook(BuildHookInterface[Any]):
    """Puts `examples/<name>` into the wheel as `reattach/examples/<name>`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; an editable install uses the checkout itself."""
        if self.target_name != "wheel" or version == "editable":
            return
        if not Path(self.root, INSPECTOR, "index.html").is_file():
            raise _not_built(INSPECTOR)
        for name in EXAMPLES:
            folder = Path(self.root, "examples", name)
            if not (folder / "pages" / "index.html").is_file():
                raise _not_built(f"examples/{name}/pages")
            for file in sorted(folder.rglob("*")):
                inside = file.relative_to(folder)
                if file.is_file() and not LEFT_OUT.intersection(inside.parts):
                    target = Path("reattach", "examples", name, inside)
                    build_data["force_include"][str(file)] = target.as_posix()


def _not_built(pages: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{pages} is not built, and a wheel without its pages would be broken for its user: run"
        " `make wheel`, which builds them first"
    )
