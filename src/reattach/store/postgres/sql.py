"""Every statement on PostgreSQL.

`append_statement` puts the statement of a batch together from the pieces for the tables that the
batch writes to. Each is a step of one ``WITH``, so that all is one statement, one round trip, one
transaction; `docs/adr/0007-append-in-one-statement.md` says why. What the steps keep to:

- All of them see the database as it was when the statement began, but a row is locked or changed
  as it is by then. Sessions are locked in the order of their ids, those that somebody else has
  locked are passed over, and a session's guard is looked at on the locked row.
- The guards of clients and keys are looked at as of the beginning. Where somebody changed them
  between that and the lock, a row is missing among those that were written: they are counted, and
  the statement fails whole with `RACED`, to be tried again.
- Parts are known by their place in the batch. No step joins another one: what big tables are asked
  for, they are asked by their key, in a way that leaves no other plan (an EXISTS might be answered
  by reading the whole table once).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import Final, NamedTuple

from reattach.store.packing import HEAD, MARK
from reattach.store.shared import IDEMPOTENCY_LIFETIME_MS

__all__ = ["PARTS", "RACED", "WRITTEN_OUT", "Piece", "append_statement"]

WRITTEN_OUT: Final = frozenset({"bool", "int4", "int8"})
"""Types whose arrays go to the server as text, ``{1,2,NULL}``: the driver would ask of each element
whether it is an array itself, which costs more than all else that it does to a number."""

RACED: Final = "reattach: another node was quicker, this is tried again"
"""What the error of a statement says that changed nothing and is to be repeated."""


class Piece(NamedTuple):
    """Steps of the statement for one table. ``{arrays}``: its rows, an array for each of ``types``.

    ``looks`` come before it is known which parts are good. ``guard`` has to hold of a part, beside
    that its session stands. ``raced`` counts the rows that were to be written and are missing,
    where somebody may come between.
    """

    types: Sequence[str]
    writes: str
    looks: str = ""
    guard: str = ""
    raced: str = ""


PARTS: Final = Piece(
    # Where a session has to stand, and its row as it shall stand afterwards.
    types=(
        *("text", "bool", "bool", "bool", "bool", "int8", "text", "int8"),
        *("text", "text", "int8", "int8", "int8", "text", "int8", "int8", "int8", "bool"),
        *("int8", "int8"),
    ),
    writes="""
judged AS MATERIALIZED (
    SELECT part.*, is_taken,
        is_sound AND CASE WHEN creates THEN NOT is_taken ELSE locked.stands IS TRUE END{guards}
            AS is_good
    FROM unnest({arrays}) WITH ORDINALITY AS part (
        session_id, creates, erases, writes, is_sound,
        expected_version, expected_epoch, expected_access_version,
        user_id, epoch, epoch_version, version, access_version, schema_name, schema_version,
        created_at, last_activity, is_active, disconnected_at, reconnected_at, number
    )
    LEFT JOIN LATERAL (
        SELECT true AS stands FROM sessions
        WHERE NOT part.creates AND sessions.session_id = part.session_id
            AND sessions.version = part.expected_version
            AND sessions.epoch = part.expected_epoch
            AND sessions.access_version = part.expected_access_version
        FOR UPDATE SKIP LOCKED
    ) AS locked ON true
    CROSS JOIN LATERAL (
        SELECT part.creates AND COALESCE(
            (SELECT true FROM sessions WHERE sessions.session_id = part.session_id),
            (SELECT true FROM erased_sessions AS gone WHERE gone.session_id = part.session_id),
            false
        ) AS is_taken
    ) AS found
),
verdict AS MATERIALIZED (
    SELECT array_agg(is_good ORDER BY number) AS good,
        array_agg(is_taken ORDER BY number) AS taken
    FROM judged
)""",
)

CREATIONS: Final = Piece(
    types=(),
    writes="""
created AS (
    INSERT INTO sessions (
        session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
        schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
    )
    SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
        schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
    FROM judged WHERE is_good AND creates ORDER BY number
    ON CONFLICT (session_id) DO NOTHING
    RETURNING 1
)""",
    raced="""
(SELECT count(*) FROM judged WHERE is_good AND creates) - (SELECT count(*) FROM created)""",
)

# The row is there and locked, so this never inserts. It changes the row as it is by now, which an
# UPDATE joined with the parts would have to find by way of the row as it was.
UPDATES: Final = Piece(
    types=(),
    writes="""
updated AS (
    INSERT INTO sessions (
        session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
        schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
    )
    SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
        schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
    FROM judged WHERE is_good AND writes AND NOT creates AND NOT erases
    ON CONFLICT (session_id) DO UPDATE SET
        user_id = excluded.user_id, epoch = excluded.epoch,
        epoch_version = excluded.epoch_version, version = excluded.version,
        access_version = excluded.access_version, schema_name = excluded.schema_name,
        schema_version = excluded.schema_version, created_at = excluded.created_at,
        last_activity = excluded.last_activity, is_active = excluded.is_active,
        disconnected_at = excluded.disconnected_at, reconnected_at = excluded.reconnected_at
)""",
)

# Members have a copy of when their session was last active, by which their sessions are listed.
MEMBERS_UP: Final = Piece(
    types=(),
    writes="""
moved_up AS (
    UPDATE members SET last_activity = judged.last_activity FROM judged
    WHERE is_good AND writes AND judged.access_version > 0
        AND members.session_id = judged.session_id
        AND members.last_activity <> judged.last_activity
)""",
)

# The rest of an erased session goes when its row is gone: see `ERASE_REST`.
ERASURES: Final = Piece(
    types=("int4", "text", "int8", "bytea", "bytea"),
    writes="""
erased AS (
    DELETE FROM sessions USING judged
    WHERE is_good AND erases AND sessions.session_id = judged.session_id
    RETURNING 1
),
buried AS (
    INSERT INTO erased_sessions (session_id, erased_at, salt, members)
    SELECT session_id, erased_at, salt, members
    FROM unnest({arrays}) AS row (number, session_id, erased_at, salt, members)
    WHERE (SELECT good FROM verdict)[number]
)""",
    raced="""
(SELECT count(*) FROM judged WHERE is_good AND erases) - (SELECT count(*) FROM erased)""",
)

# One row for each client: where all of its steps begin and end; 0 for both where it is only met.
CLIENTS: Final = Piece(
    types=("int4", "text", "text", "text", "text", "int8", "int8", "int8"),
    looks="""
clients_known AS MATERIALIZED (
    SELECT step.*, known.user_id IS NOT NULL AS is_known,
        CASE WHEN known.user_id IS NULL THEN step.before <> 0
            ELSE known.user_id <> step.user_id
                OR (step.seq <> 0 AND known.seq <> step.before)
        END AS is_wrong
    FROM unnest({arrays}) AS step (
        number, session_id, client_id, user_id, device_id, before, seq, at
    )
    LEFT JOIN LATERAL (
        SELECT user_id, seq FROM clients
        WHERE clients.session_id = step.session_id AND clients.client_id = step.client_id
    ) AS known ON true
)""",
    writes="""
clients_started AS (
    INSERT INTO clients (session_id, client_id, user_id, device_id, seq, at)
    SELECT session_id, client_id, user_id, device_id, seq, at
    FROM clients_known WHERE NOT is_known AND (SELECT good FROM verdict)[number]
    ON CONFLICT (session_id, client_id) DO NOTHING
    RETURNING 1
),
clients_advanced AS (
    UPDATE clients SET device_id = step.device_id, seq = step.seq, at = step.at
    FROM clients_known AS step
    WHERE is_known AND step.seq <> 0 AND (SELECT good FROM verdict)[number]
        AND clients.session_id = step.session_id AND clients.client_id = step.client_id
        AND clients.user_id = step.user_id AND clients.seq = step.before
    RETURNING 1
)""",
    guard="number NOT IN (SELECT clients_known.number FROM clients_known WHERE is_wrong)",
    raced="""
(
    SELECT count(*) FROM clients_known
    WHERE NOT (is_known AND seq = 0) AND (SELECT good FROM verdict)[number]
) - (SELECT count(*) FROM clients_started) - (SELECT count(*) FROM clients_advanced)""",
)

COMMITS: Final = Piece(
    types=("int4", "text", "int8", "bytea", "bytea", "int8", "text", "int8", "int8"),
    writes="""
new_commits AS (
    INSERT INTO commits (session_id, version, body, writes, at, client_id, seq, client_at)
    SELECT session_id, version, body, writes, at, client_id, seq, client_at
    FROM unnest({arrays}) AS row (
        number, session_id, version, body, writes, at, client_id, seq, client_at
    )
    WHERE (SELECT good FROM verdict)[number]
)""",
)

REFUSALS: Final = Piece(
    types=("int4", "text", "text", "int8", "int8", "bytea"),
    writes="""
new_refusals AS (
    INSERT INTO refusals (session_id, client_id, seq, client_at, body)
    SELECT session_id, client_id, seq, client_at, body
    FROM unnest({arrays}) AS row (number, session_id, client_id, seq, client_at, body)
    WHERE (SELECT good FROM verdict)[number]
)""",
)

CONFLICTS: Final = Piece(
    types=("int4", "text", "text", "bytea", "text", "int8", "bytea"),
    writes="""
new_conflicts AS (
    INSERT INTO conflicts (session_id, conflict_id, path, status, version, body)
    SELECT session_id, conflict_id, path, status, version, body
    FROM unnest({arrays}) AS row (
        number, session_id, conflict_id, path, status, version, body
    )
    WHERE (SELECT good FROM verdict)[number]
    ON CONFLICT (session_id, conflict_id) DO UPDATE SET
        path = excluded.path, status = excluded.status, version = excluded.version,
        body = excluded.body
)""",
)

DEVICES: Final = Piece(
    types=(
        *("int4", "text", "text", "text", "text", "bytea", "bool", "int8", "int8"),
        *("text", "int8", "int8"),
    ),
    writes="""
new_devices AS (
    INSERT INTO session_devices (
        session_id, device_id, user_id, name, info, is_primary, created_at, last_activity,
        given_name, revoked_at, version
    )
    SELECT session_id, device_id, user_id, name, info, is_primary, created_at, last_activity,
        given_name, revoked_at, version
    FROM unnest({arrays}) AS row (
        number, session_id, device_id, user_id, name, info, is_primary, created_at, last_activity,
        given_name, revoked_at, version
    )
    WHERE (SELECT good FROM verdict)[number]
    ON CONFLICT (session_id, device_id) DO UPDATE SET
        user_id = excluded.user_id, name = excluded.name, info = excluded.info,
        is_primary = excluded.is_primary, last_activity = excluded.last_activity,
        given_name = excluded.given_name, revoked_at = excluded.revoked_at,
        version = excluded.version
)""",
)

CHECKPOINTS: Final = Piece(
    types=("int4", "text", "text", "text", "text", "int8", "bytea", "bytea", "int8"),
    writes="""
new_checkpoints AS (
    INSERT INTO session_checkpoints (
        session_id, checkpoint_id, name, kind, version, step, data, created_at
    )
    SELECT session_id, checkpoint_id, name, kind, version, step, data, created_at
    FROM unnest({arrays}) AS row (
        number, session_id, checkpoint_id, name, kind, version, step, data, created_at
    )
    WHERE (SELECT good FROM verdict)[number]
    ON CONFLICT (session_id, checkpoint_id) DO NOTHING
)""",
)

ACTIVITY: Final = Piece(
    types=("int4", "text", "int4", "text", "int8", "text", "text", "bytea"),
    writes="""
new_activity AS (
    INSERT INTO session_activity_log (
        session_id, entry, activity_type, at, user_id, device_id, data
    )
    SELECT session_id, line + COALESCE((
            SELECT max(entry) FROM session_activity_log AS earlier
            WHERE earlier.session_id = row.session_id
        ), 0), activity_type, at, user_id, device_id, data
    FROM unnest({arrays}) AS row (
        number, session_id, line, activity_type, at, user_id, device_id, data
    )
    WHERE (SELECT good FROM verdict)[number]
)""",
)

STATES: Final = Piece(
    types=("int4", "text", "int8", "bytea", "bytea"),
    writes="""
new_states AS (
    INSERT INTO states (session_id, version, state, last_writers)
    SELECT session_id, version, state, last_writers
    FROM unnest({arrays}) AS row (number, session_id, version, state, last_writers)
    WHERE (SELECT good FROM verdict)[number]
    ON CONFLICT (session_id, version) DO UPDATE SET
        state = excluded.state, last_writers = excluded.last_writers
)""",
)

REACTIONS: Final = Piece(
    types=("int4", "text", "text", "int8", "int8"),
    writes="""
new_reactions AS (
    INSERT INTO reactions (session_id, name, version, wanted, leased_until)
    SELECT session_id, name, version, wanted, 0
    FROM unnest({arrays}) AS row (number, session_id, name, version, wanted)
    WHERE (SELECT good FROM verdict)[number]
    ON CONFLICT (session_id, name) DO UPDATE SET wanted = excluded.wanted
)""",
)

# Of two parts with one key the store leaves out the second: see `rows.Batch`.
KEYS: Final = Piece(
    types=("int4", "text", "text", "text", "bytea", "int4", "bytea", "bytea", "int8", "text"),
    looks="""
keys_brought AS MATERIALIZED (
    SELECT row.*,
        (
            SELECT given.created_at > row.created_at - {lifetime} FROM idempotency_keys AS given
            WHERE given.user_id = row.user_id AND given.route = row.route AND given.key = row.key
        ) IS TRUE AS is_answered
    FROM unnest({arrays}) AS row (
        number, user_id, route, key, request, status, headers, body, created_at, session_id
    )
)""",
    writes="""
keys_recorded AS (
    INSERT INTO idempotency_keys (
        user_id, route, key, request, status, headers, body, created_at, session_id
    )
    SELECT user_id, route, key, request, status, headers, body, created_at, session_id
    FROM keys_brought WHERE (SELECT good FROM verdict)[number]
    ORDER BY user_id, route, key
    ON CONFLICT (user_id, route, key) DO UPDATE SET
        request = excluded.request, status = excluded.status, headers = excluded.headers,
        body = excluded.body, created_at = excluded.created_at, session_id = excluded.session_id
    WHERE idempotency_keys.created_at <= excluded.created_at - {lifetime}
    RETURNING 1
)""",
    guard="number NOT IN (SELECT keys_brought.number FROM keys_brought WHERE is_answered)",
    raced="""
    (SELECT count(*) FROM keys_brought WHERE (SELECT good FROM verdict)[number])
        - (SELECT count(*) FROM keys_recorded)""",
)


@lru_cache(maxsize=256)
def append_statement(pieces: Sequence[Piece]) -> str:
    """Put together the statement that writes parts and these pieces; it gives back one row.

    The row has two arrays with a place for each part: which are good, and which sessions were to be
    created and are there. Its parameters are the arrays of `PARTS`, then those of the pieces.
    """
    numbers = count(1)
    arrays = [
        ", ".join(
            f"${next(numbers)}::{'text::' if one in WRITTEN_OUT else ''}{one}[]"
            for one in piece.types
        )
        for piece in (PARTS, *pieces)
    ]

    def filled(text: str, arrays: str) -> str:
        return text.replace("{arrays}", arrays).replace("{lifetime}", str(IDEMPOTENCY_LIFETIME_MS))

    guards = "".join(f"\n        AND {piece.guard}" for piece in pieces if piece.guard)
    judged = filled(PARTS.writes, arrays[0]).replace("{guards}", guards)
    texts = list(zip(pieces, arrays[1:], strict=True))
    steps = [
        *(filled(piece.looks, its) for piece, its in texts if piece.looks),
        judged,
        *(filled(piece.writes, its) for piece, its in texts),
    ]
    missing = " +".join(piece.raced for piece in pieces if piece.raced) or "0"
    return (
        f"WITH{','.join(steps)}\n"
        "SELECT good, taken,\n"
        f"    CASE missing WHEN 0 THEN 0 ELSE CAST('{RACED} ' || missing AS integer) END\n"
        f"FROM verdict, (SELECT {missing} AS missing) AS written"
    )


# --- What goes with it, in the transaction of a batch that has such parts -------------------------

# A session that was erased after the statement had begun, and before it made it anew, is found.
FIND_ERASED: Final = "SELECT session_id FROM erased_sessions WHERE session_id = ANY ($1::text[])"

# Everything of a session but its row.
ERASE_REST: Final = (
    "DELETE FROM commits WHERE session_id = $1",
    "DELETE FROM states WHERE session_id = $1",
    "DELETE FROM clients WHERE session_id = $1",
    "DELETE FROM refusals WHERE session_id = $1",
    "DELETE FROM conflicts WHERE session_id = $1",
    "DELETE FROM session_devices WHERE session_id = $1",
    "DELETE FROM members WHERE session_id = $1",
    "DELETE FROM credentials WHERE session_id = $1",
    "DELETE FROM reactions WHERE session_id = $1",
    "DELETE FROM session_activity_log WHERE session_id = $1",
    "DELETE FROM session_checkpoints WHERE session_id = $1",
    "DELETE FROM idempotency_keys WHERE session_id = $1",
    "DELETE FROM seats WHERE session_id = $1",
)

# A part that has members removed and put removes first.
REMOVE_MEMBERS: Final = "DELETE FROM members WHERE session_id = $1 AND user_id = ANY ($2::text[])"

PUT_MEMBER: Final = """
INSERT INTO members (session_id, last_activity, user_id, role) VALUES ($1, $2, $3, $4)
ON CONFLICT (session_id, user_id) DO UPDATE SET
    role = excluded.role, last_activity = excluded.last_activity
"""

REMOVE_CREDENTIALS: Final = """
DELETE FROM credentials WHERE session_id = $1 AND secret_hash = ANY ($2::bytea[])
"""

PUT_CREDENTIAL: Final = """
INSERT INTO credentials (
    session_id, secret_hash, kind, user_id, role, device_id, created_at, expires_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (session_id, secret_hash) DO UPDATE SET
    kind = excluded.kind, user_id = excluded.user_id, role = excluded.role,
    device_id = excluded.device_id, created_at = excluded.created_at,
    expires_at = excluded.expires_at
"""

CLAIM: Final = (
    "UPDATE clients SET user_id = $3 WHERE session_id = $1 AND user_id = $2",
    "UPDATE session_devices SET user_id = $3 WHERE session_id = $1 AND user_id = $2",
)

# --- Other writes ---------------------------------------------------------------------------------

# The index gives the oldest at once, and the limit bounds what one batch has to remove.
REMOVE_OLD_KEYS: Final = """
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE created_at <= $1 ORDER BY created_at LIMIT $2
    FOR UPDATE SKIP LOCKED
))
"""

REMOVE_OLD_ACTIVITY: Final = """
DELETE FROM session_activity_log WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM session_activity_log WHERE at < $1 ORDER BY at LIMIT $2
    FOR UPDATE SKIP LOCKED
))
RETURNING 1
"""

# Compaction and erasure keep out of each other's way, and no commit out of theirs: a lock on the
# session's row would have appends pass it over.
HOLD_HISTORY: Final = "SELECT pg_advisory_xact_lock(hashtextextended('reattach ' || $1, 0))"

HAS_EPOCH: Final = "SELECT 1 FROM sessions WHERE session_id = $1 AND epoch = $2"

KEEP_STATE: Final = """
INSERT INTO states (session_id, version, state, last_writers) VALUES ($1, $2, $3, $4)
ON CONFLICT (session_id, version) DO NOTHING
"""

COMPACT_LOG: Final = "DELETE FROM commits WHERE session_id = $1 AND version <= $2"

COMPACT_STATES: Final = """
DELETE FROM states WHERE session_id = $1 AND version < $2 AND version <> ALL ($3::int8[])
"""

REMOVE_CHECKPOINTS: Final = """
DELETE FROM session_checkpoints WHERE session_id = $1 AND checkpoint_id = ANY ($2::text[])
"""

LEASE: Final = """
INSERT INTO meta (key, value) VALUES ($1, $2)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
WHERE meta.value <= $3 OR substr(meta.value, 17) = $4
RETURNING 1
"""

LEASE_REACTION: Final = """
UPDATE reactions SET owner = $3, leased_until = $4::int8 + $5
WHERE session_id = $1 AND name = $2 AND (owner = $3 OR leased_until <= $4)
RETURNING version
"""

ADVANCE_REACTION: Final = """
UPDATE reactions SET version = $4, owner = $5, leased_until = $6
WHERE session_id = $1 AND name = $2 AND owner = $3
RETURNING version
"""

CHECK: Final = """
INSERT INTO meta (key, value) VALUES ('checked_at', $1)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""

# --- Reads ----------------------------------------------------------------------------------------

READ_SESSION: Final = """
SELECT session.session_id, session.user_id, epoch, epoch_version, version, access_version,
    schema_name, schema_version, created_at, last_activity, is_active, disconnected_at,
    reconnected_at, gone.erased_at, gone.salt, gone.members
FROM (SELECT) AS once
LEFT JOIN sessions AS session ON session.session_id = $1
LEFT JOIN erased_sessions AS gone ON gone.session_id = $1
"""

# All is looked up, whatever there is: so nobody can tell by the time that it takes.
READ_STANDINGS: Final = """
SELECT session.session_id, session.user_id, epoch, epoch_version, version, access_version,
    schema_name, schema_version, created_at, session.last_activity, is_active, disconnected_at,
    reconnected_at, gone.erased_at, gone.salt, gone.members, member.role
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (session_id, user_id, number)
LEFT JOIN sessions AS session ON session.session_id = asked.session_id
LEFT JOIN erased_sessions AS gone ON gone.session_id = asked.session_id
LEFT JOIN members AS member
    ON member.session_id = asked.session_id AND member.user_id = asked.user_id
ORDER BY number
"""

# $2 is the version at which the session is wanted, or null for its newest.
READ_LOADED: Final = """
SELECT session_id, user_id, epoch, epoch_version, session.version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at,
    saved.version, saved.state, saved.last_writers,
    ARRAY(
        SELECT ROW(version, body, writes, at, client_id, seq, client_at) FROM commits
        WHERE session_id = $1 AND version > saved.version
            AND version <= COALESCE($2, session.version)
        ORDER BY version
    ),
    ARRAY(
        SELECT ROW(conflict_id, path, status, version, body) FROM conflicts
        WHERE session_id = $1 AND status IN ('auto', 'open') ORDER BY version, conflict_id
    ),
    ARRAY(
        SELECT ROW(device_id, user_id, name, info, is_primary, created_at, last_activity,
            given_name, revoked_at, version)
        FROM session_devices WHERE session_id = $1 ORDER BY created_at, device_id
    ),
    ARRAY(SELECT ROW(user_id, role) FROM members WHERE session_id = $1)
FROM sessions AS session CROSS JOIN LATERAL (
    SELECT version, state, last_writers FROM states
    WHERE states.session_id = $1 AND states.version <= COALESCE($2, session.version)
    ORDER BY version DESC LIMIT 1
) AS saved
WHERE session_id = $1
"""


def weight_of(column: str) -> str:
    """Write out what the bytes in a column weigh unpacked: see `reattach.store.packing`."""
    head = f"substring({column} FROM {len(MARK) + 1} FOR {HEAD - len(MARK)})"
    return (
        f"CASE WHEN substring({column} FROM 1 FOR {len(MARK)}) = '\\x{MARK.hex()}'"
        f" THEN ('x' || encode({head}, 'hex'))::bit(32)::int8"
        f" ELSE octet_length({column}) END"
    )


# The same of many. What they weigh is looked at before they are read: what a row has apart from it
# (TOAST) stays there.
READ_MANY_LOADED: Final = f"""
WITH weighed AS MATERIALIZED (
    SELECT asked.session_id, number, saved.version, sum(COALESCE(saved.weight, 0)) OVER (
            ORDER BY number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS before
    FROM unnest($1::text[]) WITH ORDINALITY AS asked (session_id, number)
    LEFT JOIN sessions AS session ON session.session_id = asked.session_id
    LEFT JOIN LATERAL (
        SELECT version, {weight_of("state")} + {weight_of("last_writers")} + COALESCE((
                SELECT sum(octet_length(body) + octet_length(writes)) FROM commits
                WHERE commits.session_id = asked.session_id AND commits.version > states.version
                    AND commits.version <= session.version
            ), 0) AS weight
        FROM states
        WHERE states.session_id = asked.session_id AND states.version <= session.version
        ORDER BY version DESC LIMIT 1
    ) AS saved ON true
)
SELECT session.session_id, user_id, epoch, epoch_version, session.version, access_version,
    schema_name, schema_version, created_at, last_activity, is_active, disconnected_at,
    reconnected_at, saved.version, saved.state, saved.last_writers,
    ARRAY(
        SELECT ROW(version, body, writes, at, client_id, seq, client_at) FROM commits
        WHERE session_id = weighed.session_id AND version > weighed.version
            AND version <= session.version
        ORDER BY version
    ),
    ARRAY(
        SELECT ROW(conflict_id, path, status, version, body) FROM conflicts
        WHERE session_id = weighed.session_id AND status IN ('auto', 'open')
        ORDER BY version, conflict_id
    ),
    ARRAY(
        SELECT ROW(device_id, user_id, name, info, is_primary, created_at, last_activity,
            given_name, revoked_at, version)
        FROM session_devices WHERE session_id = weighed.session_id ORDER BY created_at, device_id
    ),
    ARRAY(SELECT ROW(user_id, role) FROM members WHERE session_id = weighed.session_id),
    number
FROM weighed
LEFT JOIN states AS saved
    ON saved.session_id = weighed.session_id AND saved.version = weighed.version
LEFT JOIN sessions AS session ON session.session_id = saved.session_id
WHERE COALESCE(before, 0) <= $2
"""  # noqa: S608  # names of columns

READ_VERSIONS: Final = """
SELECT session_id, epoch, version, access_version FROM sessions
WHERE session_id = ANY ($1::text[])
"""

# Both halves come out of their index in order, and are read as far as the page goes.
LIST_SESSIONS: Final = """
(
    SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
        schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
    FROM sessions WHERE user_id = $1 AND (last_activity, session_id) < ($2, $3)
    ORDER BY last_activity DESC, session_id DESC LIMIT $4
) UNION ALL (
    SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
        schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
    FROM (
        SELECT session_id FROM members
        WHERE user_id = $1 AND (last_activity, session_id) < ($2, $3)
        ORDER BY last_activity DESC, session_id DESC LIMIT $4
    ) AS page JOIN sessions USING (session_id)
)
ORDER BY last_activity DESC, session_id DESC LIMIT $4
"""

_SEARCH = """
SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
FROM sessions
WHERE (last_activity, session_id) < ($1, $2) AND last_activity BETWEEN $3 AND $4
    AND session_id >= $5 AND session_id < $5::text || chr(127)
    AND ($6::text IS NULL OR user_id = $6
        OR session_id IN (SELECT session_id FROM members WHERE user_id = $6))
    AND ($7::text IS NULL OR schema_name = $7)
    AND ($8::text[] IS NULL OR session_id = ANY ($8))
    AND ($9::text[] IS NULL OR session_id <> ALL ($9)){named}
ORDER BY last_activity DESC, session_id DESC LIMIT $10
"""
"""Ids are of ASCII's visible characters alone."""

_NAMED = """
    AND session_id IN (
        SELECT session_id FROM sessions WHERE session_id >= $11 AND session_id < $12
        UNION SELECT session_id FROM sessions WHERE user_id >= $11 AND user_id < $12
        UNION SELECT session_id FROM members WHERE user_id = $11
    )"""

SEARCH_SESSIONS: Final = _SEARCH.format(named="")
SEARCH_SESSIONS_BY_NAME: Final = _SEARCH.format(named=_NAMED)

RENEW_EPOCHS: Final = "UPDATE sessions SET epoch = $1, epoch_version = version"

# For whoever inspects a session: it may cost a look at all of it, and sorts what it found.
SLOTS_OF_COMMITS: Final = """
SELECT (version - $1) / $2 AS slot, client_id, count(*), sum(length(body))::bigint, min(version),
    max(version), min(at), max(at)
FROM commits WHERE session_id = $3 AND version BETWEEN $1 AND $4
GROUP BY slot, client_id ORDER BY slot, coalesce(client_id, '')
"""

PAGE_OF_REFUSALS: Final = """
SELECT client_id, seq, client_at, body FROM refusals
WHERE session_id = $1 AND (client_at, client_id, seq) < ($2, $3, $4)
ORDER BY client_at DESC, client_id DESC, seq DESC LIMIT $5
"""

DUE_REACTIONS: Final = """
SELECT session_id, name FROM reactions
WHERE wanted > version AND leased_until <= $1 AND name = ANY ($2::text[])
ORDER BY leased_until, session_id, name LIMIT $3
"""

READ_SAVED_VERSIONS: Final = """
SELECT version FROM states WHERE session_id = $1 ORDER BY version
"""

READ_LOG_TIMES: Final = """
SELECT version, at FROM commits WHERE session_id = $1 ORDER BY version LIMIT $2
"""

READ_AGED: Final = """
SELECT session_id, COALESCE((
        SELECT at FROM commits WHERE commits.session_id = page.session_id
        ORDER BY version LIMIT 1
    ) < $1, false) OR EXISTS (
        SELECT 1 FROM session_checkpoints AS mark
        WHERE mark.session_id = page.session_id AND kind = 'automatic' AND created_at < $2
        OFFSET 0
    )
FROM (
    SELECT session_id FROM sessions WHERE session_id > $3 ORDER BY session_id LIMIT $4
) AS page
ORDER BY session_id
"""

READ_LOG: Final = """
SELECT version, body, writes, at, client_id, seq, client_at FROM commits
WHERE session_id = $1 AND version BETWEEN $2 AND $3 AND ($4::text IS NULL OR client_id = $4)
ORDER BY version LIMIT $5
"""

# From row to row as long as those before weigh little enough, so that no more is read than given.
READ_LOG_BY_WEIGHT: Final = """
WITH RECURSIVE taken AS (
    (
        SELECT version, octet_length(body)::int8 AS weight, 1 AS number FROM commits
        WHERE session_id = $1 AND version BETWEEN $2 AND $3
            AND ($4::text IS NULL OR client_id = $4)
        ORDER BY version LIMIT LEAST($5::int8, 1)
    )
    UNION ALL
    SELECT further.version, taken.weight + further.weight, taken.number + 1
    FROM taken CROSS JOIN LATERAL (
        SELECT version, octet_length(body)::int8 AS weight FROM commits
        WHERE session_id = $1 AND commits.version > taken.version AND commits.version <= $3
            AND ($4::text IS NULL OR client_id = $4)
        ORDER BY version LIMIT 1
    ) AS further
    WHERE taken.weight <= $6 AND ($5::int8 IS NULL OR taken.number < $5)
)
SELECT version, body, writes, at, client_id, seq, client_at
FROM taken JOIN commits USING (version) WHERE session_id = $1 ORDER BY version
"""

READ_CLIENT: Final = """
SELECT client_id, user_id, device_id, seq, at FROM clients WHERE session_id = $1 AND client_id = $2
"""

READ_CLIENTS: Final = """
SELECT client.client_id, user_id, device_id, seq, at, ARRAY(
    SELECT ROW(client_id, seq, client_at, body) FROM refusals
    WHERE refusals.session_id = asked.session_id AND refusals.client_id = asked.client_id
        AND refusals.seq > asked.after
    ORDER BY seq
)
FROM unnest($1::text[], $2::text[], $3::int8[]) WITH ORDINALITY
    AS asked (session_id, client_id, after, number)
LEFT JOIN clients AS client
    ON client.session_id = asked.session_id AND client.client_id = asked.client_id
ORDER BY number
"""

READ_SINCE: Final = """
SELECT session.session_id, user_id, epoch, epoch_version, session.version, access_version,
    schema_name, schema_version, created_at, last_activity, is_active, disconnected_at,
    reconnected_at, ARRAY(
        SELECT ROW(version, body, writes, at, client_id, seq, client_at) FROM commits
        WHERE commits.session_id = asked.session_id AND commits.version > asked.after
        ORDER BY version
    )
FROM unnest($1::text[], $2::int8[]) WITH ORDINALITY AS asked (session_id, after, number)
LEFT JOIN sessions AS session ON session.session_id = asked.session_id
ORDER BY number
"""

READ_REFUSALS: Final = """
SELECT client_id, seq, client_at, body FROM refusals
WHERE session_id = $1 AND client_id = $2 AND seq > $3 ORDER BY seq
"""

# A number that was no refusal is a commit, and so were those before it that were none: that many
# versions lie below it. The log is read from there, and in a session with one writer the first row
# is the one. From its beginning only where numbers came without their decisions.
READ_DECISION: Final = """
SELECT refusal.body, COALESCE(
    refusal.client_at,
    (
        SELECT client_at FROM commits
        WHERE session_id = $1 AND client_id = $2 AND seq = $3 AND version >= $3 - (
            SELECT count(*) FROM refusals WHERE session_id = $1 AND client_id = $2 AND seq < $3
        )
        ORDER BY version LIMIT 1
    ),
    (
        SELECT client_at FROM commits
        WHERE session_id = $1 AND client_id = $2 AND seq = $3 ORDER BY version LIMIT 1
    )
)
FROM clients AS client
LEFT JOIN refusals AS refusal
    ON refusal.session_id = $1 AND refusal.client_id = $2 AND refusal.seq = $3
WHERE client.session_id = $1 AND client.client_id = $2 AND client.seq >= $3
"""

LIST_CONFLICTS: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = $1 AND (version, conflict_id) < ($2, $3)
ORDER BY version DESC, conflict_id DESC LIMIT $4
"""

LIST_CONFLICTS_BY_STATUS: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = $1 AND status = $5 AND (version, conflict_id) < ($2, $3)
ORDER BY version DESC, conflict_id DESC LIMIT $4
"""

LIST_CHECKPOINTS: Final = """
SELECT checkpoint_id, name, kind, version, step, data, created_at FROM session_checkpoints
WHERE session_id = $1 AND (version, checkpoint_id) < ($2, $3)
ORDER BY version DESC, checkpoint_id DESC LIMIT $4
"""

READ_CHECKPOINT: Final = """
SELECT checkpoint_id, name, kind, version, step, data, created_at FROM session_checkpoints
WHERE session_id = $1 AND checkpoint_id = $2
"""

READ_LATEST_CHECKPOINT: Final = """
SELECT checkpoint_id, name, kind, version, step, data, created_at FROM session_checkpoints
WHERE session_id = $1 AND kind <> 'before_restore'
ORDER BY version DESC, checkpoint_id DESC LIMIT 1
"""

LIST_ACTIVITY: Final = """
SELECT entry, activity_type, at, user_id, device_id, data FROM session_activity_log
WHERE session_id = $1 AND entry < $2 ORDER BY entry DESC LIMIT $3
"""

READ_DEVICES: Final = """
SELECT device_id, user_id, name, info, is_primary, created_at, last_activity, given_name,
    revoked_at, version
FROM session_devices WHERE session_id = $1 ORDER BY created_at, device_id
"""

READ_MEMBERS: Final = "SELECT user_id, role FROM members WHERE session_id = $1"

READ_CREDENTIAL: Final = """
SELECT secret_hash, kind, user_id, role, device_id, created_at, expires_at FROM credentials
WHERE session_id = $1 AND secret_hash = $2
"""

READ_CREDENTIALS: Final = """
SELECT secret_hash, kind, user_id, role, device_id, created_at, expires_at FROM credentials
WHERE session_id = $1 ORDER BY created_at, secret_hash
"""

# All of a session, table by table, within one transaction.
# The oldest state that the log follows on, without a gap.
ALL_STATE: Final = """
SELECT version, state, last_writers FROM states
WHERE session_id = $1 AND version >= COALESCE(
    (SELECT min(version) - 1 FROM commits WHERE session_id = $1),
    (SELECT max(version) FROM states WHERE session_id = $1)
)
ORDER BY version LIMIT 1
"""

ALL_KEPT_STATES: Final = """
SELECT version, state, last_writers FROM states
WHERE session_id = $1 AND version < $2 ORDER BY version
"""

ALL_COMMITS: Final = """
SELECT version, body, writes, at, client_id, seq, client_at FROM commits
WHERE session_id = $1 ORDER BY version
"""

ALL_CLIENTS: Final = """
SELECT client_id, user_id, device_id, seq, at FROM clients
WHERE session_id = $1 ORDER BY client_id
"""

ALL_REFUSALS: Final = """
SELECT client_id, seq, client_at, body FROM refusals
WHERE session_id = $1 ORDER BY client_id, seq
"""

ALL_CONFLICTS: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = $1 ORDER BY version, conflict_id
"""

ALL_CHECKPOINTS: Final = """
SELECT checkpoint_id, name, kind, version, step, data, created_at FROM session_checkpoints
WHERE session_id = $1 ORDER BY version, checkpoint_id
"""

ALL_ACTIVITY: Final = """
SELECT activity_type, at, user_id, device_id, data FROM session_activity_log
WHERE session_id = $1 ORDER BY entry
"""

READ_KEY: Final = """
SELECT user_id, route, key, request, status, headers, body, created_at FROM idempotency_keys
WHERE user_id = $1 AND route = $2 AND key = $3 AND created_at > $4
"""

# --- Nodes, by the server's clock -----------------------------------------------------------------


def _timed(statement: str) -> str:
    """Put the time in, ms since 1970, for each ``{now}``."""
    return statement.replace("{now}", "(extract(epoch FROM clock_timestamp()) * 1000)::int8")


RENEW_NODE: Final = _timed("""
INSERT INTO nodes (node, leased_until, told) VALUES ($1, {now} + $2::int8, 0)
ON CONFLICT (node) DO UPDATE SET
    leased_until = excluded.leased_until, told = GREATEST(nodes.told, 0)
RETURNING told
""")

NEIGHBOURS: Final = _timed("""
SELECT node, CASE told WHEN -1 THEN 0 ELSE leased_until - {now} END, told FROM nodes
WHERE node <> $1 AND (leased_until > {now} OR told = -1)
""")

WRITE_SEATS: Final = """
WITH brought AS (
    SELECT * FROM unnest($3::text[], $4::int8[], $5::bytea[]) AS row (session_id, number, body)
),
taken AS (
    INSERT INTO seats (session_id, node, number, body)
    SELECT session_id, $1, number, body FROM brought WHERE body IS NOT NULL ORDER BY session_id
    ON CONFLICT (session_id, node) DO UPDATE SET number = excluded.number, body = excluded.body
),
given_up AS (
    DELETE FROM seats USING brought
    WHERE seats.session_id = brought.session_id AND seats.node = $1 AND brought.body IS NULL
)
UPDATE nodes SET told = $2 WHERE node = $1
"""

LOOK_AROUND: Final = _timed("""
WITH others AS MATERIALIZED (
    SELECT node, CASE told WHEN -1 THEN 0 ELSE leased_until - {now} END AS lives_ms, told FROM nodes
    WHERE node <> $1 AND (leased_until > {now} OR told = -1)
)
SELECT node, lives_ms, told, NULL::int8, NULL::int8, NULL::bytea FROM others
UNION ALL
SELECT others.node, 0, 0, asked.number, seats.number, seats.body
FROM unnest($2::text[]) WITH ORDINALITY AS asked (session_id, number)
JOIN seats ON seats.session_id = asked.session_id
JOIN others ON others.node = seats.node AND told <> -1
""")

LEAVE_NODE: Final = _timed("UPDATE nodes SET leased_until = {now}, told = -1 WHERE node = $1")

# Whoever was swept away and lives is told so by its next renewal, and writes all of its rows anew.
# Seats are read through only where a node has gone: they may be many, and have no index for it.
SWEEP_NODES: Final = _timed("""
WITH gone AS (DELETE FROM nodes WHERE leased_until <= {now} - $1::int8 RETURNING 1)
DELETE FROM seats WHERE EXISTS (SELECT FROM gone)
    AND node NOT IN (SELECT node FROM nodes WHERE leased_until > {now} - $1::int8)
""")

# --- What a new connection looks at ---------------------------------------------------------------

SERVER: Final = """
SELECT current_setting('fsync'), current_setting('synchronous_commit'), pg_is_in_recovery(),
    current_setting('server_version_num')::integer, to_regclass('alembic_version') IS NOT NULL
"""

REVISION: Final = "SELECT version_num FROM alembic_version"
IDENTITY: Final = "SELECT value FROM meta WHERE key = 'identity'"
GIVE_IDENTITY: Final = """
INSERT INTO meta (key, value) VALUES ('identity', $1) ON CONFLICT (key) DO NOTHING
"""
