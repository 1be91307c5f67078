/* Objects of the extension neon, version 1.0. The functions are in neon_ext/src/sql.rs. */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION neon" to load this file. \quit

CREATE FUNCTION neon_version() RETURNS text
AS 'MODULE_PATHNAME', 'neon_version_wrapper'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION neon_version() IS 'version of the neon library';

CREATE FUNCTION neon_is_compute() RETURNS boolean
AS 'MODULE_PATHNAME', 'neon_is_compute_wrapper'
LANGUAGE C STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION neon_is_compute() IS 'whether permanent relations live on a page server';

CREATE FUNCTION pg_cluster_size() RETURNS bigint
AS 'MODULE_PATHNAME', 'pg_cluster_size_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_cluster_size() IS 'logical size of the timeline in bytes, as storage reported it last; NULL if unknown';

CREATE FUNCTION backpressure_positions(
    OUT received bigint, OUT disk_consistent bigint, OUT remote_consistent bigint, OUT committed bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'backpressure_positions_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION backpressure_positions() IS 'WAL positions reported by storage, in bytes; NULL if unknown';

CREATE FUNCTION backpressure_lsns(
    OUT received_lsn pg_lsn, OUT disk_consistent_lsn pg_lsn, OUT remote_consistent_lsn pg_lsn)
AS $$
    SELECT '0/0'::pg_lsn + p.received, '0/0'::pg_lsn + p.disk_consistent, '0/0'::pg_lsn + p.remote_consistent
    FROM backpressure_positions() p
$$
LANGUAGE SQL VOLATILE;

COMMENT ON FUNCTION backpressure_lsns() IS 'WAL that the page server has received, made durable, and made durable in the object store';

CREATE FUNCTION backpressure_lags(
    OUT stage text, OUT lag bigint, OUT lag_limit bigint, OUT seconds_per_mebibyte float8)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'backpressure_lags_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE FUNCTION backpressure_throttling_time() RETURNS bigint
AS 'MODULE_PATHNAME', 'backpressure_throttling_time_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION backpressure_throttling_time() IS 'microseconds that writers were held back since the server started';

CREATE VIEW neon_backpressure AS
    SELECT l.stage, l.lag, l.lag_limit, l.seconds_per_mebibyte,
        backpressure_throttling_time() AS throttled_us,
        (SELECT count(*) FROM pg_stat_activity a WHERE a.wait_event = 'NeonBackpressure') AS waiting
    FROM backpressure_lags() l;

COMMENT ON VIEW neon_backpressure IS 'bytes of WAL that storage is behind, by stage; how long each writer pauses for a mebibyte of WAL because of it; how long all writers have paused since the server started; how many do now';

CREATE FUNCTION get_perf_counters(OUT metric text, OUT bucket_le float8, OUT value float8)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'get_perf_counters_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE VIEW neon_perf_counters AS SELECT * FROM get_perf_counters();

COMMENT ON VIEW neon_perf_counters IS 'what the storage manager has done since the server started; bucket_le is the upper bound of a histogram''s bucket in seconds';

CREATE FUNCTION neon_get_lfc_stats(OUT lfc_key text, OUT lfc_value bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'neon_get_lfc_stats_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE VIEW neon_lfc_stats AS SELECT * FROM neon_get_lfc_stats();

COMMENT ON VIEW neon_lfc_stats IS 'state and figures of the local file cache; sizes in chunks, or in pages where the name says so';

CREATE VIEW neon_stat_file_cache AS
    SELECT s.misses, s.hits, s.used, s.writes,
           CASE WHEN s.hits + s.misses > 0 THEN round(s.hits * 100.0 / (s.hits + s.misses), 2) ELSE 0 END AS hit_ratio
    FROM (SELECT sum(lfc_value) FILTER (WHERE lfc_key = 'file_cache_misses') AS misses,
                 sum(lfc_value) FILTER (WHERE lfc_key = 'file_cache_hits') AS hits,
                 sum(lfc_value) FILTER (WHERE lfc_key = 'file_cache_used') AS used,
                 sum(lfc_value) FILTER (WHERE lfc_key = 'file_cache_writes') AS writes
          FROM neon_get_lfc_stats()) s;

COMMENT ON VIEW neon_stat_file_cache IS 'hits of the local file cache in pages and in percent';

CREATE FUNCTION local_cache_pages(
    OUT pageoffs bigint, OUT relfilenode oid, OUT reltablespace oid, OUT reldatabase oid,
    OUT relforknumber smallint, OUT relblocknumber bigint, OUT accesscount integer)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'local_cache_pages_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE VIEW local_cache AS SELECT * FROM local_cache_pages();

COMMENT ON VIEW local_cache IS 'pages in the local file cache, and how often their chunk was used lately (at most 3)';

CREATE FUNCTION approximate_working_set_size_seconds(duration integer DEFAULT NULL) RETURNS integer
AS 'MODULE_PATHNAME', 'approximate_working_set_size_seconds_wrapper'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION approximate_working_set_size_seconds(integer) IS 'about how many different pages were read or written past shared buffers in the last seconds';

CREATE FUNCTION approximate_working_set_size(reset boolean) RETURNS integer
AS 'MODULE_PATHNAME', 'approximate_working_set_size_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION approximate_working_set_size(boolean) IS 'about how many different pages were read or written past shared buffers since the last reset';

CREATE FUNCTION get_local_cache_state(max_chunks integer DEFAULT NULL) RETURNS bytea
AS 'MODULE_PATHNAME', 'get_local_cache_state_wrapper'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION get_local_cache_state(integer) IS 'which pages the local file cache holds, the most useful chunks first; for prewarm_local_cache';

CREATE FUNCTION prewarm_local_cache(state bytea) RETURNS bigint
AS 'MODULE_PATHNAME', 'prewarm_local_cache_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION prewarm_local_cache(bytea) IS 'brings pages into the local file cache while it has room, and returns how many';

CREATE FUNCTION get_prewarm_info(OUT total bigint, OUT prewarmed bigint, OUT skipped bigint, OUT active_workers bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'get_prewarm_info_wrapper'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION get_prewarm_info() IS 'how far filling the local file cache is: pages of the list, brought, not brought, and processes at work';

-- Reading these tells nothing about anybody's data, but they are for operators.
REVOKE ALL ON FUNCTION get_perf_counters() FROM PUBLIC;
REVOKE ALL ON FUNCTION backpressure_positions() FROM PUBLIC;
REVOKE ALL ON FUNCTION backpressure_lags() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION get_perf_counters() TO pg_monitor;
GRANT EXECUTE ON FUNCTION backpressure_positions() TO pg_monitor;
REVOKE ALL ON FUNCTION neon_get_lfc_stats(), local_cache_pages() FROM PUBLIC;
REVOKE ALL ON FUNCTION approximate_working_set_size_seconds(integer), approximate_working_set_size(boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION neon_get_lfc_stats(), local_cache_pages() TO pg_monitor;
GRANT EXECUTE ON FUNCTION approximate_working_set_size_seconds(integer) TO pg_monitor;
GRANT SELECT ON neon_lfc_stats, neon_stat_file_cache, local_cache TO pg_monitor;
GRANT EXECUTE ON FUNCTION backpressure_lags() TO pg_monitor;
REVOKE ALL ON FUNCTION get_local_cache_state(integer), prewarm_local_cache(bytea), get_prewarm_info() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION get_prewarm_info() TO pg_monitor;
GRANT SELECT ON neon_perf_counters, neon_backpressure TO pg_monitor;
