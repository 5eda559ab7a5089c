"""The built page: a few files, named after what is in them, and the headers of a careful page."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Final

from starlette.responses import FileResponse, Response

from reattach.errors import ReattachError

__all__ = ["PAGES", "POLICY", "NoPages", "NoSuchPage", "page"]

PAGES: Final = Path(__file__).parent / "pages"

# Nothing from elsewhere, nothing written into the page, and no text that becomes HTML: what
# somebody put into a state can never run.
_SOURCES: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
POLICY: Final = "; ".join(f"{what} {source}" for what, source in _SOURCES.items())
_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class NoPages(ReattachError):
    """The inspector's page was not built: run ``make install``, or install a release's wheel."""

    code = "not_built"
    status = 503


class NoSuchPage(ReattachError):
    """There is no such file of the inspector's page: load the page anew."""

    code = "not_found"
    status = 404


def page(name: str) -> Response:
    """Answer with a file of the page; raises `NoPages` or `NoSuchPage`."""
    if not (PAGES / "index.html").is_file():
        raise NoPages("the inspector's page is not built: run make install")
    files = {one.relative_to(PAGES).as_posix(): one for one in PAGES.rglob("*") if one.is_file()}
    if name not in files:
        raise NoSuchPage("there is no such file of this page: load it anew")
    forever = name.startswith("assets/")
    kept = "public, max-age=31536000, immutable" if forever else "no-cache"
    kind, _ = mimetypes.guess_type(name)
    return FileResponse(files[name], headers=_HEADERS | {"Cache-Control": kept}, media_type=kind)
