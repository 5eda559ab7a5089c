"""`Reattach`: the server as one ASGI application, to be served or mounted."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.metadata import version
from typing import Literal, Self, TypeVar

from fastapi import FastAPI
from pydantic import SecretStr
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send

from reattach.bus.base import Bus
from reattach.bus.snapshots import Snapshots
from reattach.errors import BadSetting, Unavailable
from reattach.runtime.access import Authorize, User
from reattach.runtime.clock import Clock, SystemClock
from reattach.runtime.credentials import holder
from reattach.runtime.expiry import Expiring
from reattach.runtime.reactions import React, Reaction
from reattach.runtime.registry import Registry
from reattach.schema import ModelSchema, SessionModel
from reattach.server import problems, ws
from reattach.server.auth import Auth, Authenticate, nobody
from reattach.server.cors import Cors
from reattach.server.inspector.access import Inspect, Inspecting, by_settings
from reattach.server.inspector.nodes import Peers
from reattach.server.inspector.routes import inspector_routes
from reattach.server.metrics import Crew, exposition
from reattach.server.operators import operated
from reattach.server.routes import routes
from reattach.server.tokens import Tokens
from reattach.sessions import Sessions
from reattach.settings import Settings, origin_of
from reattach.store.base import Store
from reattach.store.sqlite import SQLiteStore
from reattach.store.urls import store_at

__all__ = ["Lifespan", "Reattach", "store_at"]

OnCommit = TypeVar("OnCommit", bound=React)

Lifespan = Callable[["Reattach"], AbstractAsyncContextManager[None]]
"""What an application runs beside its sessions: entered when they are at hand, left before."""


class Reattach:
    """Sessions that outlive connections, as an ASGI application.

    Serve it (``reattach serve --app package.module:reattach``), or mount it under any prefix and
    have it run as long as its host does::

        reattach = Reattach(database="sqlite:///reattach.db")

        @asynccontextmanager
        async def lifespan(app):
            async with reattach:
                yield

        app = FastAPI(lifespan=lifespan)
        app.mount("/sessions", reattach)

    Without that it starts on first use, and is not stopped in good order. A start that fails
    raises what is wrong, such as `DatabaseHeld`, and may be tried again.
    """

    def __init__(  # noqa: PLR0913 - all that an application may say, each by its name
        self,
        *,
        database: str | None = None,
        settings: Settings | None = None,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        schemas: Sequence[type[SessionModel]] = (),
        store: Store | None = None,
        clock: Clock | None = None,
        lifespan: Lifespan | None = None,
        inspect: Inspect | None = None,
    ) -> None:
        """Describe the server; nothing is opened yet.

        ``database`` (a URL, ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or
        ``postgresql://user:password@host/database``) goes before the one in ``settings``; a
        ``store`` goes before both. ``authenticate`` says who is there; without it, tokens do
        (``Settings.auth`` is ``jwt``), or there is one user and only this machine is let in.
        ``authorize`` says what a user may do with a session, beside its members
        (`reattach.runtime.access`). ``lifespan(reattach)`` is entered when sessions are at hand and
        left before they are closed. ``schemas`` are the models of what sessions may hold
        (`reattach.schema`), which clients name when they create one. ``inspect`` says who may look
        at everybody's sessions at ``/inspector``, which there is only with it or by
        ``Settings.inspector``.
        """
        self.settings = Settings() if settings is None else settings
        self.schemas = tuple(ModelSchema(model) for model in schemas)
        self.clock = SystemClock() if clock is None else clock
        self.authenticate = authenticate
        self.authorize = authorize
        self.auth = Auth(authenticate, self._holder, self.settings.allow_origins)
        if self.settings.auth == "jwt":
            self.use_tokens()
        if self.settings.anonymous:
            self.allow_anonymous()
        self._says_who_inspects = inspect is not None
        self.inspecting = None if inspect is None else Inspecting(inspect)
        """Who inspects; None: there is no inspector."""
        if self.settings.inspector != "off":
            self.use_inspector(self.settings.inspector)
        self.sessions = Sessions(self.running)
        self._store = store
        self.lifespan = lifespan
        self._expiring: list[Expiring] = []
        self._reactions: list[Reaction] = []
        self._life: _Life | None = None
        self._stopped = False
        self.crew: Crew | None = None
        """The workers of which this is one, if there are several."""
        if database is not None:
            self.use_database(database)
        elif store is None:
            store_at(self.settings.database)
        self.app = FastAPI(
            title="Reattach",
            version=version("reattach"),
            lifespan=self._serve,
            # Our own route has it, which not everybody is answered; and pages of it load scripts.
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
        )
        problems.install(self.app)
        self.app.add_middleware(Cors, lambda: self.auth)
        self.app.include_router(routes(self))
        self.app.include_router(inspector_routes(self))
        self.app.router.routes.append(
            WebSocketRoute("/ws/session/{session_id}", partial(ws.endpoint, self))
        )

    def use_database(self, url: str) -> None:
        """Keep sessions in another database from the next start on; raises `StoreError`."""
        store_at(url)
        self.settings = self.settings.model_copy(update={"database": url})
        self._store = None

    def on_commit(
        self, *, schema: str | type[SessionModel] | None = None, name: str | None = None
    ) -> Callable[[OnCommit], OnCommit]:
        """Have a function called for the commits of sessions with a schema (None: of all)::

            @reattach.on_commit(schema=Order)
            async def index(session_id: str, commit: Commit) -> None:
                await search.put(session_id, commit.patch)

        For each session in order, at least once each, and on one node at a time, whichever dies.
        What it raises is logged, and the commit comes again. How far it is stands in the database
        under ``name`` (the function's own module and name, if there is none): under a new name it
        begins with the next commit. Raises `BadSetting` for a name that is taken.
        """
        wanted = ModelSchema(schema).name if isinstance(schema, type) else schema

        def decorate(react: OnCommit) -> OnCommit:
            known = f"{react.__module__}.{react.__qualname__}" if name is None else name
            if any(one.name == known for one in self._reactions):
                raise BadSetting(f"expected another name than {known!r}, which is taken: give one")
            self._reactions.append(Reaction(known, wanted, react))
            return react

        return decorate

    def on_expiring(self, listener: Expiring) -> Expiring:
        """Have a function called before a session is ended that nobody uses (``expire_days``)::

            @reattach.on_expiring
            async def warn(session_id: str, user_id: str, ends_at: int) -> None:
                await mail.send(user_id, f"Your draft goes at {ends_at}")

        A week before, or half of the days if that is less; ``ends_at`` is in ms since 1970. Once
        for each time that the session was left, and again where it fails or the node dies.
        """
        self._expiring.append(listener)
        return listener

    def use_redis(self, url: str) -> None:
        """Tell other nodes by a Redis or Valkey from the next start on; raises `BadSetting`."""
        bus_at(url)
        self.settings = self.settings.model_copy(update={"redis": SecretStr(url)})

    def check_workers(self, workers: int) -> None:
        """Raise `BadSetting` where so many processes cannot share the database."""
        if workers > 1 and isinstance(self._new_store(), SQLiteStore):
            raise BadSetting(
                f"expected one worker on SQLite, whose file one process holds, got {workers}: leave"
                " out --workers, or give a --database postgresql://…"
            )

    def use_tokens(self) -> None:
        """Let in whoever has a valid JSON Web Token, from the next start on (``--auth jwt``).

        Raises `BadSetting` where the settings name no key, or something else says who is there.
        """
        own = self.authenticate is not None and self.authenticate is not nobody
        if own and not isinstance(self.authenticate, Tokens):
            raise BadSetting(
                "expected either --auth jwt (REATTACH_AUTH) or an authenticate of the application's"
                " own, got both: leave one out"
            )
        self.authenticate = Tokens(self.settings)
        self.auth = Auth(self.authenticate, self._holder, self.auth.allowed_origins)

    def allow_anonymous(self) -> None:
        """Let who has not signed in begin sessions, from the next start on (``--anonymous``).

        Where nobody can sign in, that is all that anybody can: no request is this machine's user's.
        """
        self.settings = self.settings.model_copy(update={"anonymous": True})
        if self.authenticate is None:
            self.authenticate = nobody
            self.auth = Auth(nobody, self._holder, self.auth.allowed_origins)

    def use_inspector(self, mode: Literal["read", "write"]) -> None:
        """Have a page at ``/inspector``, to look or to write, too (``--inspector``).

        An ``inspect`` of the application's goes before it. Raises `BadSetting` for a token that
        could be guessed.
        """
        if not self._says_who_inspects:
            self.inspecting = by_settings(self.settings, mode)

    def allow_origins(self, origins: Sequence[str]) -> None:
        """Let pages of these origins use the server, too; raises `BadSetting`."""
        try:
            more = [origin_of(one) for one in origins]
        except ValueError as error:
            raise BadSetting(str(error)) from None
        allowed = self.auth.allowed_origins.union(more)
        self.auth = Auth(self.authenticate, self._holder, allowed)

    # Life

    def node(self) -> Registry:
        """Return what a node of this server is made of, for an operator who starts and stops it."""
        return self._new_registry()

    @property
    def registry(self) -> Registry:
        """The open sessions; raises `Unavailable` while the server does not run."""
        if self._life is None or self._life.registry is None:
            raise Unavailable("the server does not run: start it, or come back")
        return self._life.registry

    @property
    def peers(self) -> Peers:
        """The nodes, as an inspector sees them; raises `Unavailable` while it does not run."""
        if self._life is None or self._life.peers is None:
            raise Unavailable("the server does not run: start it, or come back")
        return self._life.peers

    async def running(self) -> Registry:
        """Return the open sessions; starts the server on its first use."""
        if self._life is None or self._life.registry is None:
            if self._stopped:
                raise Unavailable("the server was stopped: come back")
            await self.start()
        return self.registry

    async def metrics(self) -> bytes:
        """Return the metrics of this process, and of the other workers if there are any."""
        mine = exposition(await self.running())
        return mine if self.crew is None else await self.crew.exposition(mine)

    def join(self, crew: Crew) -> None:
        """Be one of several workers behind one port, from the next start on."""
        self.crew = crew

    async def start(self) -> None:
        """Open the database and begin, unless that was done. Raises what keeps it from it."""
        while self._life is not None and self._life.ending and not self._life.over:
            await self._life.end()
        if self._life is None or self._life.over:
            self._stopped = False
            self._life = _Life(self, self._new_registry())
        await self._life.begun()

    async def stop(self) -> None:
        """Send every connection away (1012), make durable what is under way, close the database.

        Takes `Settings.shutdown_timeout_ms` at most, if the database lets it.
        """
        self._stopped = True
        if self._life is not None:
            await self._life.end()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or serve one WebSocket (ASGI)."""
        if scope["type"] != "lifespan" and not self._stopped:
            await self.start()
        await self.app(scope, receive, send)

    async def _holder(self, token: str) -> User:
        return await holder(await self.running(), token)

    @contextlib.asynccontextmanager
    async def _serve(self, _: FastAPI) -> AsyncIterator[None]:
        async with self:
            yield

    def _new_store(self) -> Store:
        settings = self.settings
        if self._store is not None:
            return self._store
        return store_at(settings.database, timeout_ms=settings.store_timeout_ms)

    def _new_registry(self) -> Registry:
        settings = self.settings
        url = None if settings.redis is None else settings.redis.get_secret_value()
        return Registry(
            self._new_store(),
            settings.limits(one_user=self.authenticate is None),
            self.clock,
            store_timeout_ms=settings.store_timeout_ms,
            idle_session_ms=settings.idle_session_ms,
            schemas=self.schemas,
            bus=None if url is None else bus_at(url),
            snapshots=None if url is None else snapshots_at(url),
            reactions=self._reactions,
            authorize=self.authorize,
            activity_days=settings.activity_days,
            history_days=settings.history_days,
            expire_days=settings.expire_days,
            expiring=self._expiring,
        )


class _Life:
    """One run of a server, from its start to its stop, in one task of its own."""

    def __init__(self, reattach: Reattach, registry: Registry) -> None:
        self.registry: Registry | None = None
        """The open sessions, while they are at hand."""
        self.peers: Peers | None = None
        """This node among others, where there is an inspector."""
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._end = asyncio.Event()
        self._reminder = weakref.finalize(self, _remind)
        self._task = self._loop.create_task(self._run(reattach, registry), name="reattach")

    @property
    def over(self) -> bool:
        """Whether it has ended, or never began."""
        return self._task.done()

    @property
    def ending(self) -> bool:
        """Whether it was asked to end."""
        return self._end.is_set()

    async def begun(self) -> None:
        """Return when it has begun; raises what kept it from it."""
        if self._loop is not asyncio.get_running_loop():
            raise Unavailable("the server was started on another event loop: stop it there first")
        await asyncio.shield(self._begun)

    async def end(self) -> None:
        """End it; raises what went wrong since it had begun."""
        self._end.set()
        # Not awaited itself: whoever waits may be cancelled, and this goes on.
        await asyncio.wait({self._task})
        if self._begun.exception() is None:
            self._task.result()

    async def _run(self, reattach: Reattach, registry: Registry) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                await registry.start()
                stack.push_async_callback(self._stop, registry, reattach.settings)
                await stack.enter_async_context(operated(registry, reattach.settings))
                self.registry = registry
                if reattach.inspecting is not None:
                    self.peers = Peers(registry, reattach.metrics)
                    self.peers.start()
                    stack.callback(self.peers.stop)
                if reattach.crew is not None:
                    stack.push_async_callback(reattach.crew.close)
                    await reattach.crew.open(partial(exposition, registry))
                if reattach.lifespan is not None:
                    await stack.enter_async_context(reattach.lifespan(reattach))
                self._begun.set_result(None)
                await self._end.wait()
        except asyncio.CancelledError:
            # The event loop ends, and nobody had said so before.
            if self._begun.done():
                self._reminder()
            raise
        except Exception as error:
            if self._begun.done():
                raise
            self._begun.set_exception(error)
            self._begun.exception()  # whoever waited for it may have given up
        finally:
            self._reminder.detach()
            self._begun.cancel()

    async def _stop(self, registry: Registry, settings: Settings) -> None:
        self.registry = None
        await registry.stop(timeout_ms=settings.shutdown_timeout_ms)


def _remind() -> None:
    warnings.warn(
        "a Reattach was started and never stopped: what is saved is safe, but its clients were cut"
        " off. Run it inside `async with reattach:` in the lifespan of the application that mounts"
        " it (a mounted application has none of its own)",
        RuntimeWarning,
        stacklevel=2,
    )


def bus_at(url: str) -> Bus:
    """Return the bus that a Redis URL means; raises `BadSetting` for one that means none."""
    # Where there is no Redis, its client need not be loaded.
    from reattach.bus.redis import RedisBus  # noqa: PLC0415

    return RedisBus(url)


def snapshots_at(url: str) -> Snapshots:
    """Return where snapshots are held: the same Redis."""
    from reattach.bus.redis_snapshots import RedisSnapshots  # noqa: PLC0415

    return RedisSnapshots(url)
