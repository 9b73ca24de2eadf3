"""The longer statements, each of which does all of something at once: one way there and back, one commit."""

# ruff: noqa: S608 - put together from our own words
from __future__ import annotations

from typing import LiteralString

from .schema import UNFINISHED_SQL

# One statement for any number of runs. A row that is another's is left as it is, and its run is not among those that
# are returned. A watcher that follows another one takes over what that held: it is the same driver's, and nobody has
# claimed it. It may do so twice: the answer to the first time, with the new epoch, may have been lost.
WRITE: LiteralString = """
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%(given)s::jsonb) AS g (
        run text, tag text, driver_tag text, endpoint text, instance text, session text, session_owner boolean,
        answered boolean, host text, boot text, pid_ns bigint, pid bigint, start_ticks bigint, watcher_pid bigint,
        watcher_start_ticks bigint, state text, detail text, sweep_for float8, key text, fingerprint text, grace float8,
        holder text, epoch bigint, let_go float8, retry_in float8, jobs jsonb
    )
), written AS (
    INSERT INTO qx_runs AS r (
        run, held_by, epoch, tag, driver_tag, endpoint, instance, session, session_owner, answered, host, boot, pid_ns,
        pid, start_ticks, watcher_pid, watcher_start_ticks, state, detail, sweep_until, retry_at, key, fingerprint,
        grace, holder, let_go_at, created_at, updated_at
    )
    SELECT
        run, %(me)s, epoch, tag, driver_tag, endpoint, instance, session, session_owner, answered, host, boot, pid_ns,
        pid, start_ticks, watcher_pid, watcher_start_ticks, state, detail,
        clock_timestamp() + sweep_for * interval '1 second', clock_timestamp() + retry_in * interval '1 second', key,
        fingerprint, grace, holder, clock_timestamp() - let_go * interval '1 second', clock_timestamp(),
        clock_timestamp()
    FROM given
    ON CONFLICT (run) DO UPDATE SET
        held_by = excluded.held_by, epoch = r.epoch + (r.held_by <> excluded.held_by)::int,
        tag = coalesce(excluded.tag, r.tag), driver_tag = coalesce(excluded.driver_tag, r.driver_tag),
        session_owner = CASE WHEN excluded.session IS NULL THEN r.session_owner ELSE excluded.session_owner END,
        session = coalesce(excluded.session, r.session), answered = excluded.answered,
        watcher_pid = excluded.watcher_pid, watcher_start_ticks = excluded.watcher_start_ticks,
        state = excluded.state, detail = excluded.detail, sweep_until = excluded.sweep_until,
        retry_at = excluded.retry_at,
        claimed_by = CASE WHEN excluded.state = 'pending' AND excluded.retry_at IS NULL THEN r.claimed_by END,
        let_go_at = CASE WHEN excluded.let_go_at IS NOT NULL THEN coalesce(r.let_go_at, excluded.let_go_at) END,
        updated_at = excluded.updated_at
    WHERE (r.held_by = excluded.held_by AND r.epoch = excluded.epoch)
       OR (r.state = 'guarded' AND r.claimed_by IS NULL
           AND (r.boot, r.pid_ns, r.pid, r.holder)
             = (excluded.boot, excluded.pid_ns, excluded.pid, excluded.holder)
           AND r.start_ticks IS NOT DISTINCT FROM excluded.start_ticks)
    RETURNING run, epoch
), jobs AS (
    INSERT INTO qx_jobs (run, job, outcome)
    SELECT w.run, j.key, j.value FROM written w JOIN given g ON g.run = w.run, jsonb_each_text(g.jobs) j
    ON CONFLICT (run, job) DO UPDATE SET outcome = excluded.outcome WHERE excluded.outcome <> ''
)
SELECT run, epoch FROM written
"""

# The server's own start counts as a renewal: while it was away, nobody could renew.
LEASE_END: LiteralString = "greatest(h.lease_until, pg_postmaster_start_time() + h.lease_seconds * interval '1 second')"

# A reaper's own lease on a run that it has put back says nothing: that may be claimed at its time.
READ: LiteralString = (
    """
SELECT jsonb_build_object(
    'run', r.run, 'tag', r.tag, 'driver_tag', r.driver_tag, 'endpoint', r.endpoint, 'instance', r.instance,
    'session', r.session, 'session_owner', r.session_owner, 'answered', r.answered, 'host', r.host, 'boot', r.boot,
    'pid_ns', r.pid_ns, 'pid', r.pid, 'start_ticks', r.start_ticks, 'watcher_pid', r.watcher_pid,
    'watcher_start_ticks', r.watcher_start_ticks, 'state', r.state, 'detail', r.detail,
    'sweep_until', extract(epoch FROM r.sweep_until)::float8, 'claimed_by', r.claimed_by,
    'claimed_at', extract(epoch FROM r.claimed_at)::float8, 'key', r.key, 'fingerprint', r.fingerprint,
    'grace', r.grace, 'holder', r.holder, 'epoch', r.epoch,
    'let_go_at', extract(epoch FROM r.let_go_at)::float8,
    'created_at', extract(epoch FROM r.created_at)::float8, 'updated_at', extract(epoch FROM r.updated_at)::float8,
    'retry_at', extract(epoch FROM r.retry_at)::float8,
    'lease_until', extract(epoch FROM """
    + LEASE_END
    + """)::float8,
    'now', extract(epoch FROM clock_timestamp())::float8,
    'by_kind', h.kind, 'by_host', h.host, 'by_pid', h.pid,
    'jobs', (SELECT coalesce(jsonb_object_agg(j.job, j.outcome), '{}') FROM qx_jobs j WHERE j.run = r.run)
) FROM qx_runs r LEFT JOIN qx_holders h ON h.id = r.held_by """
)

CLAIM: LiteralString = (
    """
WITH due AS (
    SELECT r.run, h.lease_until FROM qx_runs r JOIN qx_holders h ON h.id = r.held_by
    WHERE """
    + UNFINISHED_SQL
    + """
      AND clock_timestamp() < to_timestamp(%(before)s)
      AND (r.endpoint, r.instance) IN (SELECT * FROM unnest(%(endpoints)s::text[], %(instances)s::text[]))
      AND CASE WHEN r.retry_at IS NOT NULL THEN r.retry_at <= clock_timestamp() ELSE
          greatest("""
    + LEASE_END
    + """, to_timestamp(%(since)s) + h.lease_seconds * interval '1 second') < clock_timestamp()
          AND (r.claimed_by IS NOT NULL
               OR coalesce(r.let_go_at, h.lease_until) + r.grace * interval '1 second' < clock_timestamp()) END
    LIMIT %(limit)s
    FOR UPDATE OF r SKIP LOCKED FOR SHARE OF h SKIP LOCKED
)
UPDATE qx_runs r SET held_by = %(me)s, epoch = r.epoch + 1, claimed_by = %(claimant)s, claimed_at = clock_timestamp(),
    retry_at = NULL, let_go_at = coalesce(r.let_go_at, due.lease_until), updated_at = clock_timestamp()
FROM due WHERE r.run = due.run RETURNING r.run, r.epoch
"""
)

CENSUS: LiteralString = (
    """
SELECT r.endpoint, r.instance,
    count(*) FILTER (WHERE r.retry_at IS NULL AND """
    + LEASE_END
    + """ > clock_timestamp() AND r.claimed_by IS NULL),
    count(*) FILTER (WHERE r.retry_at IS NULL AND """
    + LEASE_END
    + """ <= clock_timestamp()),
    count(*) FILTER (WHERE r.retry_at IS NULL AND """
    + LEASE_END
    + """ > clock_timestamp() AND r.claimed_by IS NOT NULL),
    count(*) FILTER (WHERE r.retry_at IS NOT NULL)
FROM qx_runs r JOIN qx_holders h ON h.id = r.held_by
WHERE """
    + UNFINISHED_SQL
    + """
GROUP BY r.endpoint, r.instance
"""
)
