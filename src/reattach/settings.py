"""Everything that can be set, with its unit in its name. Frozen: a setting is made at the start.

Each is also an environment variable: ``REATTACH_`` and its name in capitals. The defaults are the
protocol's (`docs/protocol.md`, sections 5 and 8).
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from reattach.core.limits import Limits

__all__ = ["Settings", "origin_of"]

_KIB = 1024
_MIB = 1024 * _KIB
_DEFAULT = Limits()
_ORIGIN: Final = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?"
)
_PORTS: Final = {"http": "80", "https": "443"}


def _origins(value: object) -> object:
    """Read origins, which an environment variable has with commas between."""
    if isinstance(value, str):
        value = [one for one in value.split(",") if one.strip()]
    return tuple(map(origin_of, value)) if isinstance(value, (list, tuple)) else value


def origin_of(value: object) -> str:
    """Return an origin as browsers write it: in lower case, without its scheme's own port.

    Raises `ValueError` for what is none.
    """
    text = value.strip().lower() if isinstance(value, str) else ""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        raise ValueError(
            f"expected an origin such as https://app.example.org, without a path and with no *,"
            f" got {value!r}"
        )
    scheme, host, port = found.groups()
    usual = port is None or _PORTS.get(scheme) == port
    return f"{scheme}://{host}" if usual else f"{scheme}://{host}:{port}"


class Settings(BaseSettings):
    """Times in milliseconds, sizes in bytes of JSON text."""

    model_config = SettingsConfigDict(env_prefix="REATTACH_", frozen=True, extra="forbid")

    database: Annotated[str, Field(repr=False)] = "sqlite:///reattach.db"
    """Where sessions live: ``sqlite:///`` and a file's path, or the URL of a PostgreSQL
    (``postgresql://user:password@host/database``)."""

    redis: SecretStr | None = None
    """The Redis or Valkey by which nodes tell each other of commits: ``redis://host:6379/0``,
    ``rediss://`` with TLS. Without it they hear of them from the database, within a second."""

    auth: Literal["none", "jwt"] = "none"
    """Who is let in where the application has no ``authenticate``: ``none``, this machine's one
    user; ``jwt``, whoever has a valid JSON Web Token, as its ``sub`` names."""
    anonymous: bool = False
    """Whether who has not signed in may begin a session, with a token for it alone."""
    jwt_secret: SecretStr | None = None
    """What tokens are signed with (HS256): at least 32 bytes. One of this and the next two."""
    jwt_public_key: str | None = None
    """The public key of whoever signs tokens, as PEM or as the path of its file."""
    jwt_jwks_url: str | None = None
    """Where the public keys of whoever signs tokens are (a JWK Set)."""
    jwt_algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"] | None = None
    """The one algorithm of tokens. A secret and a public key say it themselves."""
    jwt_issuer: str | None = None
    """What ``iss`` has to be."""
    jwt_audience: str | None = None
    """What ``aud`` has to be or to hold. A token with an ``aud`` is refused without it."""
    jwt_leeway_ms: Annotated[int, Field(ge=0)] = 0
    """How far the clock of whoever signs may be away from ours."""
    allow_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)] = ()
    """The origins whose pages may use the server, beside its own; in the environment with commas
    between."""

    public_metrics: bool = False
    """Whether ``/metrics`` is answered to others than this machine, too."""
    public_openapi: bool = False
    """Whether ``/openapi.json`` is, which tells of every route."""

    inspector: Literal["off", "read", "write"] = "off"
    """Whether there is a page at ``/inspector`` that shows every session: not, to look, or to
    restore and the like, too."""
    inspector_token: SecretStr | None = None
    """What lets in whoever opens the inspector: at least 32 bytes. Without it this machine is let
    in, unless the application has an ``inspect``."""

    heartbeat_interval_ms: int = _DEFAULT.heartbeat_interval_ms
    """Silence after which a sign of life is sent, either way."""
    heartbeat_timeout_ms: int = _DEFAULT.heartbeat_timeout_ms
    """Silence that means disconnected."""
    hello_timeout_ms: int = _DEFAULT.hello_timeout_ms
    """How long a connection may be open before its first frame."""
    reconnect_jitter_ms: int = _DEFAULT.reconnect_jitter_ms
    """Clients that are told to come back do so within a random part of this."""
    devices_interval_ms: int = _DEFAULT.devices_interval_ms
    """How often, at most, connections are told of the session's devices."""
    idle_session_ms: int = 60_000
    """How long a session that nobody uses stays in memory."""
    activity_days: Annotated[int, Field(ge=0)] = 90
    """How long lines of the activity log are kept; 0 for ever."""
    expire_days: Annotated[int, Field(ge=0)] = 0
    """After how many days a session that nobody uses is ended; 0: never."""
    activity_addresses: bool = False
    """Whether the activity log tells the address and the user agent of who connects."""
    store_timeout_ms: int = 10_000
    """How long the database may take before a batch's outcome counts as unknown."""
    shutdown_timeout_ms: int = 4_000
    """How long a stopping server waits for the batch in flight and for its connections."""

    history_days: Annotated[int, Field(ge=0)] = 30
    """How long every version of a session can be had. Of older ones those with a checkpoint can."""

    max_frame_bytes: int = _DEFAULT.max_frame_bytes
    max_change_bytes: int = _DEFAULT.max_change_bytes
    max_change_operations: int = _DEFAULT.max_change_operations
    max_state_bytes: int = _DEFAULT.max_state_bytes
    max_import_bytes: int = 64 * _MIB
    """What an exported session may weigh that is imported."""
    max_nesting: int = _DEFAULT.max_nesting
    """Containers within containers, the state itself included."""
    max_in_flight_changes: int = _DEFAULT.max_in_flight_changes
    """Changes of one client that wait for their decision; beyond it the server stops reading."""
    max_in_flight_bytes: int = _DEFAULT.max_in_flight_bytes
    """What these may weigh, before the server stops reading."""
    max_backlog_bytes: int = _DEFAULT.max_backlog_bytes
    """What the changes of all clients may weigh that wait on a node, as while its database is away;
    beyond it the server stops reading from whoever sends one."""
    max_user_connections: int = 16
    """Connections of one user on one session; not with ``--auth none``."""
    max_presence_bytes: int = _DEFAULT.max_presence_bytes
    max_device_info_bytes: int = _DEFAULT.max_device_info_bytes
    max_checkpoint_bytes: int = _DEFAULT.max_checkpoint_bytes
    """What may be saved with a checkpoint, as its `data`."""
    max_send_buffer_bytes: int = 8 * _MIB
    """What may wait for a slow reader before its connection is closed (4429)."""
    max_text_history_bytes: int = _DEFAULT.max_text_history_bytes
    """What one session remembers of how its texts were edited, to find the place of edits that were
    made offline. Beyond it, the oldest are forgotten, and what met them becomes a conflict."""
    saved_state_floor_bytes: int = _DEFAULT.saved_state_floor_bytes
    """A state is saved when the log after the last one weighs more than it, and than this."""

    def limits(self, *, one_user: bool) -> Limits:
        """Return what the core keeps to; ``one_user`` leaves out what is counted by user."""
        names = {field.name for field in msgspec.structs.fields(Limits)}
        values = {name: value for name, value in self.model_dump().items() if name in names}
        if one_user:
            values["max_user_connections"] = None
        return Limits(**values)
