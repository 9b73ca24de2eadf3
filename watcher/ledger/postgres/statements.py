"""The longer statements, each of which does all of something at once: one way there and back, one commit."""

# ruff: noqa: S608 - put together from our own words
from __future__ import annotations

from ..columns import IN_POSTGRES, on_conflict
from ..spending import FINAL_SQL
from ..store import UNFINISHED_SQL

GIVEN = tuple(c for c in IN_POSTGRES if c.is_inserted and c.name not in ("created_at", "updated_at"))
"""What is written. Moments are given in seconds from now, for no host's clock is compared with the database's."""

FROM_NOW = "clock_timestamp() + {} * interval '1 second'"

# One statement for any number of runs. A row that is another's is left as it is, and its run is not among those that
# are returned. A watcher that follows another one takes over what that held: it is the same driver's, and nobody has
# claimed it. It may do so twice: the answer to the first time, with the new epoch, may have been lost. What is over
# stays over: the driver may have written that itself, and its watcher be late with what was before.
WRITE = f"""
WITH given AS (
    SELECT * FROM jsonb_to_recordset(:given::jsonb) AS g (
        {
    ", ".join(
        f"{c.name} {'float8' if c.is_time else c.postgres.partition(' NOT')[0].partition(' PRI')[0]}" for c in GIVEN
    )
}, jobs jsonb
    )
), written AS (
    INSERT INTO qx_runs ({", ".join(c.name for c in GIVEN)}, created_at, updated_at)
    SELECT {", ".join(FROM_NOW.format(c.name) if c.is_time else c.name for c in GIVEN)},
        clock_timestamp(), clock_timestamp() FROM given
    ON CONFLICT (run) DO UPDATE SET
        {on_conflict(IN_POSTGRES, "qx_runs", epoch="{old} + (qx_runs.held_by <> excluded.held_by)::int")}
    WHERE (qx_runs.held_by = excluded.held_by AND qx_runs.epoch = excluded.epoch
           AND NOT (qx_runs.{FINAL_SQL} AND excluded.state = 'guarded'))
       OR (qx_runs.state = 'guarded' AND qx_runs.claimed_by IS NULL
           AND (qx_runs.boot, qx_runs.pid_ns, qx_runs.pid, qx_runs.holder)
             = (excluded.boot, excluded.pid_ns, excluded.pid, excluded.holder)
           AND qx_runs.start_ticks IS NOT DISTINCT FROM excluded.start_ticks)
    RETURNING run, epoch
), jobs AS (
    INSERT INTO qx_jobs (run, job, outcome)
    SELECT w.run, j.key, j.value FROM written w JOIN given g ON g.run = w.run, jsonb_each_text(g.jobs) j
    ON CONFLICT (run, job) DO UPDATE SET outcome = excluded.outcome WHERE excluded.outcome <> ''
)
SELECT run, epoch FROM written
"""

LEASE_END = "greatest(h.lease_until, pg_postmaster_start_time() + h.lease_seconds * interval '1 second')"
"""The server's own start counts as a renewal: while it was away, nobody could renew."""

READ = f"""
SELECT jsonb_build_object(
    {
    ", ".join(
        f"'{c.name}', " + (f"extract(epoch FROM r.{c.name})::float8" if c.is_time else f"r.{c.name}")
        for c in IN_POSTGRES
    )
},
    'lease_until', coalesce(extract(epoch FROM {LEASE_END})::float8, 0),
    'jobs', (SELECT coalesce(jsonb_agg(to_jsonb(j) ORDER BY j.job), '[]') FROM qx_jobs j WHERE j.run = r.run)
), jsonb_build_object(
    'kind', coalesce(h.kind, ''), 'host', coalesce(h.host, ''), 'pid', coalesce(h.pid, 0)
), extract(epoch FROM clock_timestamp())::float8
FROM qx_runs r LEFT JOIN qx_holders h ON h.id = r.held_by WHERE """

# A reaper's own lease on a run that it has put back says nothing: that may be claimed at its time.
CLAIM = f"""
WITH due AS (
    SELECT r.run, h.lease_until FROM qx_runs r JOIN qx_holders h ON h.id = r.held_by
    WHERE {UNFINISHED_SQL}
      AND clock_timestamp() < to_timestamp(:before)
      AND (r.endpoint, r.instance) IN (SELECT * FROM unnest(:endpoints::text[], :instances::text[]))
      AND CASE WHEN r.retry_at IS NOT NULL THEN r.retry_at <= clock_timestamp() ELSE
          greatest({LEASE_END}, to_timestamp(:since) + h.lease_seconds * interval '1 second') < clock_timestamp()
          AND (r.claimed_by IS NOT NULL
               OR coalesce(r.let_go_at, h.lease_until) + r.grace * interval '1 second' < clock_timestamp()) END
    LIMIT :most
    FOR UPDATE OF r SKIP LOCKED FOR SHARE OF h SKIP LOCKED
)
UPDATE qx_runs r SET held_by = :me, epoch = r.epoch + 1, claimed_by = :claimant, claimed_at = clock_timestamp(),
    retry_at = NULL, let_go_at = coalesce(r.let_go_at, due.lease_until), updated_at = clock_timestamp()
FROM due WHERE r.run = due.run RETURNING r.run, r.epoch
"""

CENSUS = f"""
SELECT r.endpoint, r.instance,
    count(*) FILTER (WHERE r.retry_at IS NULL AND {LEASE_END} > clock_timestamp() AND r.claimed_by IS NULL),
    count(*) FILTER (WHERE r.retry_at IS NULL AND {LEASE_END} <= clock_timestamp()),
    count(*) FILTER (WHERE r.retry_at IS NULL AND {LEASE_END} > clock_timestamp() AND r.claimed_by IS NOT NULL),
    count(*) FILTER (WHERE r.retry_at IS NOT NULL)
FROM qx_runs r JOIN qx_holders h ON h.id = r.held_by WHERE {UNFINISHED_SQL} GROUP BY r.endpoint, r.instance
"""

# The row is locked first, and by who claims as well. So either the claim comes first, and the renewal sees that the
# lease had run out; or the renewal comes first, and the claim sees that it has not.
RENEW = """
UPDATE qx_holders h SET lease_until = clock_timestamp() + h.lease_seconds * interval '1 second'
FROM (SELECT lease_until AS was FROM qx_holders WHERE id = :me FOR UPDATE) o
WHERE h.id = :me RETURNING o.was < clock_timestamp()
"""

REGISTER = """
INSERT INTO qx_holders (id, kind, host, boot, pid_ns, pid, start_ticks, lease_seconds, lease_until, since)
VALUES (:me, :kind, :host, :boot, :pid_ns, :pid, :start_ticks, :lasts,
        clock_timestamp() + :lasts * interval '1 second', clock_timestamp())
ON CONFLICT (id) DO NOTHING
"""
