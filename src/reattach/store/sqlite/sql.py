"""Every statement on the SQLite file. The columns stand in the order of the records' fields."""

from __future__ import annotations

from typing import Final

# --- SQL: guards; each changes one row where all stands as expected -------------------------------

CREATE_SESSION: Final = """
INSERT INTO sessions (
    session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
)
SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
WHERE NOT EXISTS (SELECT 1 FROM erased_sessions WHERE session_id = ?)
ON CONFLICT (session_id) DO NOTHING
"""

UPDATE_SESSION: Final = """
UPDATE sessions SET
    user_id = ?, epoch = ?, epoch_version = ?, version = ?, access_version = ?, schema_name = ?,
    schema_version = ?, created_at = ?, last_activity = ?, is_active = ?, disconnected_at = ?,
    reconnected_at = ?
WHERE session_id = ? AND version = ? AND epoch = ? AND access_version = ?
"""

SESSION_STANDS: Final = """
SELECT 1 FROM sessions WHERE session_id = ? AND version = ? AND epoch = ? AND access_version = ?
"""

ERASE_SESSION: Final = """
DELETE FROM sessions WHERE session_id = ? AND version = ? AND epoch = ? AND access_version = ?
"""

MEET_CLIENT: Final = """
INSERT INTO clients (session_id, client_id, user_id, device_id, seq, at) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, client_id) DO UPDATE SET seq = clients.seq
WHERE clients.user_id = excluded.user_id
"""

START_CLIENT: Final = """
INSERT INTO clients (session_id, client_id, user_id, device_id, seq, at) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, client_id)
DO UPDATE SET device_id = excluded.device_id, seq = excluded.seq, at = excluded.at
WHERE clients.user_id = excluded.user_id AND clients.seq = 0
"""

ADVANCE_CLIENT: Final = """
UPDATE clients SET device_id = ?, seq = ?, at = ?
WHERE session_id = ? AND client_id = ? AND user_id = ? AND seq = ?
"""

RECORD_KEY: Final = """
INSERT INTO idempotency_keys (
    user_id, route, key, request, status, headers, body, created_at, session_id
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id, route, key) DO UPDATE SET
    request = excluded.request, status = excluded.status, headers = excluded.headers,
    body = excluded.body, created_at = excluded.created_at, session_id = excluded.session_id
WHERE idempotency_keys.created_at <= ?
"""

# --- SQL: what goes with them ---------------------------------------------------------------------

INSERT_COMMIT: Final = """
INSERT INTO commits (session_id, version, body, writes, at, client_id, seq, client_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

INSERT_REFUSAL: Final = """
INSERT INTO refusals (session_id, client_id, seq, client_at, body) VALUES (?, ?, ?, ?, ?)
"""

PUT_CONFLICT: Final = """
INSERT INTO conflicts (session_id, conflict_id, path, status, version, body)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, conflict_id) DO UPDATE SET
    path = excluded.path, status = excluded.status, version = excluded.version,
    body = excluded.body
"""

PUT_DEVICE: Final = """
INSERT INTO session_devices (
    session_id, device_id, user_id, name, info, is_primary, created_at, last_activity,
    given_name, revoked_at, version
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, device_id) DO UPDATE SET
    user_id = excluded.user_id, name = excluded.name, info = excluded.info,
    is_primary = excluded.is_primary, last_activity = excluded.last_activity,
    given_name = excluded.given_name, revoked_at = excluded.revoked_at, version = excluded.version
"""

INSERT_CHECKPOINT: Final = """
INSERT INTO session_checkpoints (
    session_id, checkpoint_id, name, kind, version, step, data, created_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, checkpoint_id) DO NOTHING
"""

INSERT_ACTIVITY: Final = """
INSERT INTO session_activity_log (
    session_id, entry, activity_type, at, user_id, device_id, data
)
SELECT ?, COALESCE(MAX(entry), 0) + 1, ?, ?, ?, ?, ?
FROM session_activity_log WHERE session_id = ?
"""

# A part that has members removed and put removes first. The copy of the session's last activity,
# by which a member's sessions are listed, is that of the row which comes with the part.
REMOVE_MEMBER: Final = "DELETE FROM members WHERE session_id = ? AND user_id = ?"

PUT_MEMBER: Final = """
INSERT INTO members (session_id, user_id, role, last_activity) VALUES (?, ?, ?, ?)
ON CONFLICT (session_id, user_id) DO UPDATE SET
    role = excluded.role, last_activity = excluded.last_activity
"""

MOVE_MEMBERS_UP: Final = """
UPDATE members SET last_activity = ? WHERE session_id = ? AND last_activity <> ?
"""

REMOVE_CREDENTIAL: Final = "DELETE FROM credentials WHERE session_id = ? AND secret_hash = ?"

PUT_CREDENTIAL: Final = """
INSERT INTO credentials (
    session_id, secret_hash, kind, user_id, role, device_id, created_at, expires_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, secret_hash) DO UPDATE SET
    kind = excluded.kind, user_id = excluded.user_id, role = excluded.role,
    device_id = excluded.device_id, created_at = excluded.created_at,
    expires_at = excluded.expires_at
"""

CLAIM: Final = (
    "UPDATE clients SET user_id = ? WHERE session_id = ? AND user_id = ?",
    "UPDATE session_devices SET user_id = ? WHERE session_id = ? AND user_id = ?",
)

WANT_REACTION: Final = """
INSERT INTO reactions (session_id, name, version, wanted, leased_until) VALUES (?, ?, ?, ?, 0)
ON CONFLICT (session_id, name) DO UPDATE SET wanted = excluded.wanted
"""

LEASE_REACTION: Final = """
UPDATE reactions SET owner = ?, leased_until = ?
WHERE session_id = ? AND name = ? AND (owner = ? OR leased_until <= ?)
RETURNING version
"""

ADVANCE_REACTION: Final = """
UPDATE reactions SET version = ?, owner = ?, leased_until = ?
WHERE session_id = ? AND name = ? AND owner = ?
RETURNING 1
"""

DUE_REACTIONS: Final = """
SELECT session_id, name FROM reactions
WHERE wanted > version AND leased_until <= ? AND name IN (SELECT value FROM json_each(?))
ORDER BY leased_until, session_id, name LIMIT ?
"""

HAS_EPOCH: Final = "SELECT 1 FROM sessions WHERE session_id = ? AND epoch = ?"

KEEP_STATE: Final = """
INSERT INTO states (session_id, version, state, last_writers) VALUES (?, ?, ?, ?)
ON CONFLICT (session_id, version) DO NOTHING
"""

COMPACT_LOG: Final = "DELETE FROM commits WHERE session_id = ? AND version <= ?"

COMPACT_STATES: Final = """
DELETE FROM states WHERE session_id = ? AND version < ?
    AND version NOT IN (SELECT value FROM json_each(?))
"""

REMOVE_CHECKPOINT: Final = """
DELETE FROM session_checkpoints WHERE session_id = ? AND checkpoint_id = ?
"""

LEASE: Final = """
INSERT INTO meta (key, value) VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
WHERE meta.value <= ? OR substr(meta.value, 17) = ?
RETURNING 1
"""

PUT_STATE: Final = """
INSERT INTO states (session_id, version, state, last_writers) VALUES (?, ?, ?, ?)
ON CONFLICT (session_id, version) DO UPDATE SET
    state = excluded.state, last_writers = excluded.last_writers
"""

# Everything of a session but its row, which its guard has removed.
ERASE_REST: Final = (
    "DELETE FROM commits WHERE session_id = ?",
    "DELETE FROM states WHERE session_id = ?",
    "DELETE FROM clients WHERE session_id = ?",
    "DELETE FROM refusals WHERE session_id = ?",
    "DELETE FROM conflicts WHERE session_id = ?",
    "DELETE FROM session_devices WHERE session_id = ?",
    "DELETE FROM members WHERE session_id = ?",
    "DELETE FROM credentials WHERE session_id = ?",
    "DELETE FROM reactions WHERE session_id = ?",
    "DELETE FROM session_activity_log WHERE session_id = ?",
    "DELETE FROM session_checkpoints WHERE session_id = ?",
    "DELETE FROM idempotency_keys WHERE session_id = ?",
    "DELETE FROM seats WHERE session_id = ?",
)

INSERT_TOMBSTONE: Final = """
INSERT INTO erased_sessions (session_id, erased_at, salt, members) VALUES (?, ?, ?, ?)
"""

# The index gives the oldest at once, and the limit bounds what one batch has to remove.
REMOVE_OLD_KEYS: Final = """
DELETE FROM idempotency_keys WHERE rowid IN (
    SELECT rowid FROM idempotency_keys WHERE created_at <= ? ORDER BY created_at LIMIT ?
)
"""

REMOVE_OLD_ACTIVITY: Final = """
DELETE FROM session_activity_log WHERE rowid IN (
    SELECT rowid FROM session_activity_log WHERE at < ? ORDER BY at LIMIT ?
)
"""

CHECK: Final = """
INSERT INTO meta (key, value) VALUES ('checked_at', ?)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""

# --- SQL: reads -----------------------------------------------------------------------------------

READ_SESSION: Final = """
SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
FROM sessions WHERE session_id = ?
"""

# Of a session that is not there, as much is read, and made of it, as of one that is.
READ_SESSION_OR_NOTHING: Final = """
SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at, 1
FROM sessions WHERE session_id = ?1
UNION ALL
SELECT ?1, 'nobody', '00000000-0000-0000-0000-000000000000', 0, 0, 0, NULL,
    NULL, 1700000000000, 1700000000000, 1, NULL, NULL, 0
LIMIT 1
"""

READ_VERSIONS: Final = """
SELECT session_id, epoch, version, access_version FROM sessions
WHERE session_id IN (SELECT value FROM json_each(?))
"""

READ_TOMBSTONE: Final = "SELECT erased_at, salt, members FROM erased_sessions WHERE session_id = ?"

# Both halves come out of their index in order, and are merged as far as the page goes.
LIST_SESSIONS: Final = """
SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
FROM sessions WHERE user_id = ?1 AND (last_activity, session_id) < (?2, ?3)
UNION ALL
SELECT members.session_id, sessions.user_id, epoch, epoch_version, version, access_version,
    schema_name, schema_version, created_at, members.last_activity, is_active, disconnected_at,
    reconnected_at
FROM members CROSS JOIN sessions ON sessions.session_id = members.session_id
WHERE members.user_id = ?1 AND (members.last_activity, members.session_id) < (?2, ?3)
ORDER BY last_activity DESC, session_id DESC LIMIT ?4
"""

_SEARCH = """
SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
FROM sessions
WHERE ({by}last_activity, session_id) < (:at, :name)
    AND {by}last_activity BETWEEN :since AND :until
    AND session_id >= :begins AND session_id < :begins || char(127)
    AND (:user IS NULL OR user_id = :user
        OR session_id IN (SELECT session_id FROM members WHERE user_id = :user))
    AND (:schema IS NULL OR schema_name = :schema)
    AND (:within IS NULL OR session_id IN (SELECT value FROM json_each(:within)))
    AND (:without IS NULL OR session_id NOT IN (SELECT value FROM json_each(:without))){named}
ORDER BY {by}last_activity DESC, session_id DESC LIMIT :limit
"""
"""Ids are of ASCII's visible characters alone."""

_NAMED = """
    AND session_id IN (
        SELECT session_id FROM sessions WHERE session_id >= :text AND session_id < :end
        UNION SELECT session_id FROM sessions WHERE user_id >= :text AND user_id < :end
        UNION SELECT session_id FROM members WHERE user_id = :text
    )"""

SEARCH_SESSIONS: Final = _SEARCH.format(by="", named="")

# Few have the name: they are found by it, and sorted then (``+`` keeps the other index out).
SEARCH_SESSIONS_BY_NAME: Final = _SEARCH.format(by="+", named=_NAMED)

RENEW_EPOCHS: Final = "UPDATE sessions SET epoch = ?, epoch_version = version"

# For whoever inspects a session: it may cost a look at all of it, and sorts what it found.
SLOTS_OF_COMMITS: Final = """
SELECT (version - ?1) / ?2 AS slot, client_id, count(*), sum(length(body)), min(version),
    max(version), min(at), max(at)
FROM commits WHERE session_id = ?3 AND version BETWEEN ?1 AND ?4
GROUP BY slot, client_id ORDER BY slot, coalesce(client_id, '')
"""

PAGE_OF_REFUSALS: Final = """
SELECT client_id, seq, client_at, body FROM refusals
WHERE session_id = ? AND (client_at, client_id, seq) < (?, ?, ?)
ORDER BY client_at DESC, client_id DESC, seq DESC LIMIT ?
"""

READ_MEMBER: Final = "SELECT role FROM members WHERE session_id = ? AND user_id = ?"

READ_MEMBERS: Final = """
SELECT user_id, role FROM members WHERE session_id = ? ORDER BY user_id
"""

READ_CREDENTIAL: Final = """
SELECT secret_hash, kind, user_id, role, device_id, created_at, expires_at FROM credentials
WHERE session_id = ? AND secret_hash = ?
"""

READ_CREDENTIALS: Final = """
SELECT secret_hash, kind, user_id, role, device_id, created_at, expires_at FROM credentials
WHERE session_id = ? ORDER BY created_at, secret_hash
"""

READ_STATE: Final = """
SELECT version, state, last_writers FROM states WHERE session_id = ? AND version <= ?
ORDER BY version DESC LIMIT 1
"""

READ_SAVED_VERSIONS: Final = """
SELECT version FROM states WHERE session_id = ? ORDER BY version
"""

READ_LOG_TIMES: Final = """
SELECT version, at FROM commits WHERE session_id = ? ORDER BY version LIMIT ?
"""

READ_AGED: Final = """
SELECT session_id, (
        SELECT at FROM commits WHERE commits.session_id = sessions.session_id
        ORDER BY version LIMIT 1
    ) < ?1 OR EXISTS (
        SELECT 1 FROM session_checkpoints AS mark
        WHERE mark.session_id = sessions.session_id AND kind = 'automatic' AND created_at < ?2
    )
FROM sessions WHERE session_id > ?3 ORDER BY session_id LIMIT ?4
"""

READ_LOG: Final = """
SELECT version, body, writes, at, client_id, seq, client_at FROM commits
WHERE session_id = ? AND version BETWEEN ? AND ? ORDER BY version LIMIT ?
"""

READ_CLIENT_LOG: Final = """
SELECT version, body, writes, at, client_id, seq, client_at FROM commits
WHERE session_id = ? AND version BETWEEN ? AND ? AND client_id = ? ORDER BY version LIMIT ?
"""

READ_CLIENT: Final = """
SELECT client_id, user_id, device_id, seq, at FROM clients WHERE session_id = ? AND client_id = ?
"""

READ_REFUSALS: Final = """
SELECT client_id, seq, client_at, body FROM refusals
WHERE session_id = ? AND client_id = ? AND seq > ? ORDER BY seq
"""

READ_REFUSAL: Final = """
SELECT client_at, body FROM refusals WHERE session_id = ? AND client_id = ? AND seq = ?
"""

COUNT_REFUSALS: Final = """
SELECT COUNT(*) FROM refusals WHERE session_id = ? AND client_id = ? AND seq < ?
"""

FIND_COMMIT: Final = """
SELECT client_at FROM commits
WHERE session_id = ? AND version >= ? AND client_id = ? AND seq = ? ORDER BY version LIMIT 1
"""

LIST_CONFLICTS: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = ? AND (version, conflict_id) < (?, ?)
ORDER BY version DESC, conflict_id DESC LIMIT ?
"""

LIST_CONFLICTS_BY_STATUS: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = ? AND status = ? AND (version, conflict_id) < (?, ?)
ORDER BY version DESC, conflict_id DESC LIMIT ?
"""

READ_UNRESOLVED: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = ? AND status IN ('auto', 'open') ORDER BY version, conflict_id
"""

LIST_CHECKPOINTS: Final = """
SELECT checkpoint_id, name, kind, version, step, data, created_at FROM session_checkpoints
WHERE session_id = ? AND (version, checkpoint_id) < (?, ?)
ORDER BY version DESC, checkpoint_id DESC LIMIT ?
"""

READ_CHECKPOINT: Final = """
SELECT checkpoint_id, name, kind, version, step, data, created_at FROM session_checkpoints
WHERE session_id = ? AND checkpoint_id = ?
"""

READ_LATEST_CHECKPOINT: Final = """
SELECT checkpoint_id, name, kind, version, step, data, created_at FROM session_checkpoints
WHERE session_id = ? AND kind <> 'before_restore'
ORDER BY version DESC, checkpoint_id DESC LIMIT 1
"""

LIST_ACTIVITY: Final = """
SELECT entry, activity_type, at, user_id, device_id, data FROM session_activity_log
WHERE session_id = ? AND entry < ? ORDER BY entry DESC LIMIT ?
"""

READ_DEVICES: Final = """
SELECT device_id, user_id, name, info, is_primary, created_at, last_activity, given_name,
    revoked_at, version
FROM session_devices WHERE session_id = ? ORDER BY created_at, device_id
"""

# All of a session, table by table, within one transaction.
# The oldest state that the log follows on, without a gap.
ALL_STATE: Final = """
SELECT version, state, last_writers FROM states
WHERE session_id = ?1 AND version >= COALESCE(
    (SELECT min(version) - 1 FROM commits WHERE session_id = ?1),
    (SELECT max(version) FROM states WHERE session_id = ?1)
)
ORDER BY version LIMIT 1
"""

ALL_KEPT_STATES: Final = """
SELECT version, state, last_writers FROM states
WHERE session_id = ? AND version < ? ORDER BY version
"""

ALL_COMMITS: Final = """
SELECT version, body, writes, at, client_id, seq, client_at FROM commits
WHERE session_id = ? ORDER BY version
"""

ALL_CLIENTS: Final = """
SELECT client_id, user_id, device_id, seq, at FROM clients
WHERE session_id = ? ORDER BY client_id
"""

ALL_REFUSALS: Final = """
SELECT client_id, seq, client_at, body FROM refusals
WHERE session_id = ? ORDER BY client_id, seq
"""

ALL_CONFLICTS: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = ? ORDER BY version, conflict_id
"""

ALL_CHECKPOINTS: Final = """
SELECT checkpoint_id, name, kind, version, step, data, created_at FROM session_checkpoints
WHERE session_id = ? ORDER BY version, checkpoint_id
"""

ALL_ACTIVITY: Final = """
SELECT activity_type, at, user_id, device_id, data FROM session_activity_log
WHERE session_id = ? ORDER BY entry
"""

READ_KEY: Final = """
SELECT user_id, route, key, request, status, headers, body, created_at FROM idempotency_keys
WHERE user_id = ? AND route = ? AND key = ? AND created_at > ?
"""

READ_META: Final = "SELECT value FROM meta WHERE key = ?"
WRITE_META: Final = "INSERT INTO meta (key, value) VALUES (?, ?)"
REVISION: Final = "SELECT version_num FROM alembic_version"
STAMP: Final = "INSERT INTO alembic_version (version_num) VALUES (?)"
LIST_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table'"
