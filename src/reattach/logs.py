"""What the server tells: for people on a console, or as JSON lines.

A level means an action: ERROR wakes somebody, WARNING wants a look this week, INFO tells the story
of a session, DEBUG is for us. Values of states and tokens are never told: exceptions come without
their frames' variables.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor

__all__ = ["LEVELS", "Level", "configure"]

Level = Literal["debug", "info", "warning", "error"]

LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(level: Level = "info", *, json: bool = False, stream: TextIO | None = None) -> None:
    """Set up the logs of this process, those of the libraries that it uses included."""
    out = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    last: list[Processor]
    if json:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last = [
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(LEVELS[level])
    # Its story of starting and stopping is told by us; what it does not cope with is wanted.
    logging.getLogger("uvicorn").setLevel(max(LEVELS[level], logging.WARNING))
    logging.getLogger("asyncio").setLevel(max(LEVELS[level], logging.WARNING))
