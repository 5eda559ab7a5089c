"""The command ``reattach``."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer
import uvicorn
from pydantic import BaseModel, ValidationError
from rich.console import Console

from reattach import logs
from reattach.errors import BadSetting, ReattachError
from reattach.runtime.clock import SystemClock
from reattach.runtime.compaction import Compacted, Compactor
from reattach.server.app import Reattach, store_at
from reattach.server.metrics import Crew
from reattach.server.uvicorn_ws import UvicornProtocol
from reattach.server.workers import Workers
from reattach.settings import Settings
from reattach.store import migrations
from reattach.store.tables import REVISIONS
from reattach.typescript import of_model

__all__ = ["main"]

log = structlog.get_logger("reattach.serve")

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

_CANNOT = 1
"""The exit code when something is in the way."""
_WRONG = 2
"""The exit code when what was asked for makes no sense."""

_LAST_RESORT: Final = 0.7
"""Seconds beyond the shutdown timeout after which the process ends, whatever hangs."""

main = typer.Typer(
    name="reattach",
    help="A session server that never loses a user's work.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with its variables would tell what is in states and tokens.
    pretty_exceptions_enable=False,
)


class Auth(Enum):
    """How users are known when the application has no `authenticate` of its own."""

    NONE = "none"
    JWT = "jwt"


class Inspector(Enum):
    """What the page at /inspector may do."""

    READ = "read"
    WRITE = "write"


class LogLevel(Enum):
    """From which level on the log is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _Refused(Exception):
    """Why the server does not start, in one line."""

    def __init__(self, message: str, code: int = _CANNOT) -> None:
        super().__init__(message)
        self.code = code


@main.callback(invoke_without_command=True)
def reattach(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """A session server that never loses a user's work."""
    if show_version:
        _out.print(f"reattach {version('reattach')}")
        raise typer.Exit


@main.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port to listen on; 0 takes a free one.")
    ] = 8000,
    database: Annotated[
        str | None,
        typer.Option(
            help="Where sessions live: sqlite:///relative.db, sqlite:////absolute.db or"
            " postgresql://user:password@host/database (better given as REATTACH_DATABASE, which no"
            " list of processes shows). Goes before the application's own."
            "  [default: sqlite:///reattach.db]",
            show_default=False,
        ),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            help="The Redis or Valkey by which the nodes on one database tell each other:"
            " redis://host:6379/0. One with a password is better given as REATTACH_REDIS: other"
            " users of a machine see the arguments of its processes.",
            show_default=False,
        ),
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(help="The Reattach object to serve, as package.module:attribute."),
    ] = None,
    auth: Annotated[
        Auth | None,
        typer.Option(
            help="How users are known without an application's authenticate: none, this machine's"
            " one user; jwt, by JSON Web Tokens (REATTACH_JWT_SECRET, REATTACH_JWT_PUBLIC_KEY or"
            " REATTACH_JWT_JWKS_URL).  [default: none]",
            show_default=False,
        ),
    ] = None,
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous",
            help="Let who has not signed in begin sessions, each with a token for it alone.",
        ),
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="An origin whose pages may use the server, beside its own, such as"
            " https://app.example.org. May be given several times.",
            show_default=False,
        ),
    ] = None,
    inspector: Annotated[
        Inspector | None,
        typer.Option(
            help="Have a page at /inspector that shows every session, to look (read), or to restore"
            " and the like, too (write): for whoever has REATTACH_INSPECTOR_TOKEN, without one for"
            " this machine.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many processes serve, each a node of its own: one for each core, at most."
            " More than one needs PostgreSQL.",
        ),
    ] = 1,
    log_level: Annotated[
        LogLevel, typer.Option(help="What to log, from this level on.")
    ] = LogLevel.INFO,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log JSON lines.")] = False,
) -> None:
    """Serve sessions until SIGTERM or SIGINT."""
    logs.configure(log_level.value, json=json_logs)
    with _in_one_line():
        prepare = partial(_prepare, app, database, auth, redis, anonymous, allow_origin, inspector)
        served = prepare()
        served.check_workers(workers)
        _check_host(served, host)
        sockets = _bind(host, port)
        ready = partial(_say_ready, host, sockets)
        if workers == 1:
            _Server(served, sockets, ready).run()
            return
        with tempfile.TemporaryDirectory(prefix="reattach-") as folder:
            work = partial(_work, prepare, log_level, json_logs, Path(folder), workers)
            grace = served.settings.shutdown_timeout_ms / 1000 + 2 * _LAST_RESORT
            code = Workers(workers, work, sockets, ready=ready, grace=grace).run()
    if code:
        raise typer.Exit(code)


def _prepare(
    app: str | None,
    database: str | None,
    auth: Auth | None,
    redis: str | None,
    anonymous: bool,
    allow_origin: list[str] | None,
    inspector: Inspector | None,
) -> Reattach:
    """Return what is to be served, as the options have it."""
    served = _load(app, database, auth)
    if redis is not None:
        served.use_redis(redis)
    if anonymous:
        served.allow_anonymous()
    if allow_origin:
        served.allow_origins(allow_origin)
    if inspector is not None:
        served.use_inspector(inspector.value)
    return served


def _work(
    prepare: Callable[[], Reattach],
    log_level: LogLevel,
    json_logs: bool,
    folder: Path,
    count: int,
    number: int,
    sockets: Sequence[socket.socket],
    ready: Callable[[], None],
) -> int:
    """Serve as one of several, in a process of its own."""
    logs.configure(log_level.value, json=json_logs)
    try:
        with _in_one_line():
            served = prepare()
            served.join(Crew(folder, number, count))
            _Server(served, list(sockets), ready).run()
    except typer.Exit as end:
        return end.exit_code
    return 0


@main.command()
def migrate(
    database: Annotated[
        str | None,
        typer.Option(
            help="The database, as serve has it.  [default: sqlite:///reattach.db]",
            show_default=False,
        ),
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(help="The Reattach object whose database it is, as package.module:attribute."),
    ] = None,
) -> None:
    """Bring a database's tables to this release, before its servers: a PostgreSQL needs it."""
    with _in_one_line():
        url = _load(app, database, None).settings.database
        asyncio.run(_migrate(url))
        _out.print(f"The tables are those of this release (revision {REVISIONS[-1]}).")


async def _migrate(url: str) -> None:
    if url.startswith("sqlite:"):
        store = store_at(url)  # which does it itself
        await store.open()
        await store.close()
    else:
        await migrations.migrate(url)


@main.command()
def compact(
    database: Annotated[
        str | None,
        typer.Option(
            help="The database, as serve has it.  [default: sqlite:///reattach.db]",
            show_default=False,
        ),
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(help="The Reattach object whose database it is, as package.module:attribute."),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Only this session.")] = None,
) -> None:
    """Take away history that is older than is kept; a server does so by itself, once an hour.

    The file of a server that runs is that server's: it is to be stopped first.
    """
    with _in_one_line():
        done = asyncio.run(_compact(_load(app, database, None).settings, session))
        _out.print(f"{done.commits} commits and {done.checkpoints} automatic checkpoints are gone.")


async def _compact(settings: Settings, session: str | None) -> Compacted:
    store = store_at(settings.database)
    await store.open()
    try:
        limits = settings.limits(one_user=True)
        compactor = Compactor(store, SystemClock(), limits, "", history_days=settings.history_days)
        return await (compactor.sweep() if session is None else compactor.compact(session))
    finally:
        await store.close()


@main.command()
def types(
    model: Annotated[
        str,
        typer.Argument(help="The model of a session's state, as package.module:Model."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write this file, in place of the standard output."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing, and fail where the file is not up to date."),
    ] = False,
) -> None:
    """Write the TypeScript of a session's schema, for connect<State>() and the hooks."""
    with _in_one_line():
        _write_types(model, output, check=check)


def _write_types(model: str, output: Path | None, *, check: bool) -> None:
    if check and output is None:
        raise _Refused("expected a file to check: name it with --output", _WRONG)
    found = _find(model, "package.module:Model")
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise _Refused(f"expected {model} to be a pydantic model, got {_kind(found)}", _WRONG)
    head = f"// Made by: reattach types {model}\n// Change the model, and make it anew.\n\n"
    made = head + of_model(found)
    try:
        if output is None:
            typer.echo(made, nl=False)
        elif not check:
            output.write_text(made, encoding="utf-8")
        elif not output.exists() or output.read_text(encoding="utf-8") != made:
            raise _Refused(
                f"expected {output} to be what {model} says, and it is not: run reattach types"
                f" {model} --output {output}"
            )
    except OSError as error:
        raise _Refused(f"cannot use {output}: {error.strerror}") from None


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """End with a line and an exit code where something is in the way."""
    try:
        yield
    except _Refused as refused:
        _err.print(f"reattach: {refused}", markup=False)
        raise typer.Exit(refused.code) from None
    except ReattachError as error:
        _err.print(f"reattach: {error.message}", markup=False)
        raise typer.Exit(_WRONG if isinstance(error, BadSetting) else _CANNOT) from None


class _Server(uvicorn.Server):
    """uvicorn, with our WebSockets, and an end of ours."""

    def __init__(
        self,
        reattach: Reattach,
        sockets: list[socket.socket],
        ready: Callable[[], None],
    ) -> None:
        config = uvicorn.Config(
            reattach,
            loop="uvloop",
            http="httptools",
            ws=partial(UvicornProtocol, reattach),  # type: ignore[arg-type]  # it is called, no more
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        super().__init__(config)
        self._reattach = reattach
        self._sockets = sockets
        self._ready = ready

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes; raises what keeps it from starting."""
        del sockets
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self._start_and_serve())

    async def _start_and_serve(self) -> None:
        # Before uvicorn, which would make a traceback and an exit of what goes wrong.
        await self._reattach.start()
        try:
            await self.serve(self._sockets)
        finally:
            await self._reattach.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        try:
            await super().startup(sockets)
        except OSError as error:
            raise _Refused(_in_the_way(error, self._sockets[0].getsockname())) from None
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, finish what is under way, say 1012 to every connection, end.

        The sessions come first: so everybody is told, and streams end by themselves. What is left
        of the time goes to clients that are slow to go.
        """
        budget = self._reattach.settings.shutdown_timeout_ms / 1000
        begun = time.monotonic()
        last_resort = threading.Timer(budget + _LAST_RESORT, _end_now)
        last_resort.daemon = True
        last_resort.start()
        log.info("stopping", connections=len(self.server_state.connections))
        for server in self.servers:
            server.close()
        await self._reattach.stop()
        left = max(0.1, begun + budget - time.monotonic())
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # seconds
        await super().shutdown(sockets)
        log.info("stopped", seconds=round(time.monotonic() - begun, 3))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals as what they are here: the wish to end in good order, with exit code 0."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def _end_now() -> None:
    """End although something hangs: nobody was told of anything that is not durable."""
    _err.print("reattach: the database hangs, ending without it: nothing that was saved is lost")
    os._exit(0)


def _check_host(served: Reattach, host: str) -> None:
    if served.authenticate is None and not _is_loopback(host):
        raise _Refused(
            f"expected a loopback host (127.0.0.1, ::1 or localhost), got {host}: without"
            " authentication (--auth none) whoever reaches the server may read and write"
            " everything. Serve with --auth jwt or --anonymous, or an --app whose Reattach has an"
            " authenticate",
            _WRONG,
        )


def _load(app: str | None, database: str | None, auth: Auth | None) -> Reattach:
    try:
        if app is None:
            said = {} if auth is None else {"auth": auth.value}
            return Reattach(database=database, settings=Settings.model_validate(said))
        served = _import(app)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "REATTACH_" + "_".join(str(part) for part in first["loc"]).upper()
        raise _Refused(f"{name}: {first['msg']}", _WRONG) from None
    if auth is Auth.JWT:
        served.use_tokens()
    if database is not None:
        served.use_database(database)
    return served


def _import(name: str) -> Reattach:
    found = _find(name, "--app package.module:attribute")
    if not isinstance(found, Reattach):
        raise _Refused(f"expected {name} to be a Reattach, got {_kind(found)}: see --app", _WRONG)
    return found


def _find(name: str, expected: str) -> object:
    """Return what an import string names, None where its module has no such thing."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise _Refused(f"expected {expected}, got {name!r}", _WRONG)
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there and wants something that is not: its traceback says what
        raise _Refused(
            f"there is no module {module_name!r} (No module named {error.name!r}), looked for in"
            f" {Path.cwd()} and among what is installed: expected {expected}",
            _WRONG,
        ) from None
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    return found


def _kind(found: object) -> str:
    return "nothing" if found is None else f"an object of type {type(found).__name__}"


def _bind(host: str, port: int) -> list[socket.socket]:
    """Take the addresses, before anything is opened that would have to be closed again."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _Refused(f"cannot listen on {host}: {error.strerror}", _WRONG) from None
    sockets: list[socket.socket] = []
    for family, _, _, _, wanted in dict.fromkeys(found):
        one = socket.socket(family, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken = sockets[0].getsockname()[1] if sockets else port
        address = (wanted[0], taken, *wanted[2:])
        try:
            one.bind(address)
        except OSError as error:
            for bound in (*sockets, one):
                bound.close()
            raise _Refused(_in_the_way(error, address)) from None
        sockets.append(one)
    return sockets


def _in_the_way(error: OSError, address: tuple[object, ...]) -> str:
    where = f"{address[0]} port {address[1]}"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot listen on {where}: {reason}. Stop what listens there, or give another --port"


def _say_ready(host: str, sockets: list[socket.socket]) -> None:
    name = f"[{host}]" if ":" in host else host
    _out.print(f"Reattach serves http://{name}:{sockets[0].getsockname()[1]}", markup=False)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main()
