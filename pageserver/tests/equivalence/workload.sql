-- Touches every resource manager of a stock server; runs as a superuser in database postgres.
SET client_min_messages = warning;
SET wal_compression = pglz;

-- Heap, btree, toast, sequences; long transactions with subtransactions.
CREATE TABLE t (id serial PRIMARY KEY, k int, v text, big text) WITH (fillfactor = 70);
INSERT INTO t (k, v, big)
  SELECT g % 97, repeat(md5(g::text), 4),
         CASE WHEN g % 50 = 0 THEN (SELECT string_agg(md5((g + i)::text), '') FROM generate_series(1, 400) i) END
  FROM generate_series(1, 6000) g;
UPDATE t SET v = v || 'x' WHERE id % 3 = 0;
UPDATE t SET k = k + 1 WHERE id % 7 = 0;
DELETE FROM t WHERE id % 11 = 0;
BEGIN;
SAVEPOINT a; INSERT INTO t (k, v) SELECT g, 'sub a' FROM generate_series(1, 50) g;
SAVEPOINT b; UPDATE t SET v = 'sub b' WHERE id < 30;
ROLLBACK TO a;
SAVEPOINT c; DELETE FROM t WHERE id BETWEEN 40 AND 60;
COMMIT;
BEGIN; INSERT INTO t (k) VALUES (-1); ROLLBACK;
DO $$ BEGIN FOR i IN 1..200 LOOP
  BEGIN INSERT INTO t (k, v) VALUES (i, 'loop'); IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
  EXCEPTION WHEN raise_exception THEN NULL; END;
END LOOP; END $$;
SELECT count(nextval('t_id_seq')) FROM generate_series(1, 100);
INSERT INTO t (id, k) VALUES (1, 0) ON CONFLICT (id) DO UPDATE SET k = -5;
CHECKPOINT;
SET wal_compression = lz4;
SELECT count(*) FROM t WHERE k > 5;
UPDATE t SET v = 'after the checkpoint' WHERE id % 5 = 0;

-- Visibility map: set by vacuum, cleared by each kind of change.
VACUUM (FREEZE) t;
UPDATE t SET v = 'clear' WHERE id IN (10, 500, 3000);
DELETE FROM t WHERE id = 2000;
INSERT INTO t (k, v) VALUES (1, 'one more');
SELECT id FROM t WHERE id = 4000 FOR UPDATE;
VACUUM t;
CREATE TABLE copied AS SELECT k, v FROM t LIMIT 0;
INSERT INTO copied SELECT g, 'copied' FROM generate_series(1, 2000) g;
COPY t (k, v) FROM PROGRAM 'seq 1 2000 | sed s/$/,copied/' (FORMAT csv);
VACUUM (FREEZE) t;
DELETE FROM t WHERE id > 3000;
VACUUM (TRUNCATE on) t;
INSERT INTO t (k, v) SELECT g, 'refill' FROM generate_series(1, 3000) g;

-- Every index access method, grown, changed, vacuumed.
CREATE EXTENSION IF NOT EXISTS btree_gin;
CREATE TABLE idx (id int, h int, a int[], p point, b box, txt text, r int4range);
CREATE INDEX ON idx USING hash (h);
CREATE INDEX ON idx USING gin (a);
CREATE INDEX ON idx USING gin (a) WITH (fastupdate = off);
CREATE INDEX ON idx USING gist (p);
CREATE INDEX ON idx USING gist (r);
CREATE INDEX ON idx USING spgist (p);
CREATE INDEX ON idx USING spgist (txt);
CREATE INDEX ON idx USING brin (id) WITH (pages_per_range = 2);
CREATE INDEX ON idx (txt, id);
CREATE UNIQUE INDEX ON idx (id) INCLUDE (h);
INSERT INTO idx SELECT g, g % 500, ARRAY[g % 10, g % 100, g], point(g % 1000, g / 7), box(point(g, g), point(g + 1, g + 2)),
    md5((g % 3000)::text), int4range(g, g + g % 10 + 1) FROM generate_series(1, 8000) g;
SET wal_compression = zstd;
CHECKPOINT;
UPDATE idx SET h = h + 1000, txt = txt || 'y' WHERE id % 4 = 0;
DELETE FROM idx WHERE id % 3 = 0;
VACUUM idx;
DELETE FROM idx WHERE id BETWEEN 1000 AND 6000;
VACUUM (INDEX_CLEANUP on) idx;
INSERT INTO idx SELECT g, g % 50, ARRAY[g], point(-g, g), NULL, 'z' || g, int4range(-g, 0) FROM generate_series(8001, 14000) g;
SELECT brin_summarize_new_values(c.oid) FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'brin';
SET enable_seqscan = off;
SELECT count(*) FROM idx WHERE h = 7;
SELECT count(*) FROM idx WHERE id < 9000;
RESET enable_seqscan;
REINDEX TABLE idx;
CREATE INDEX CONCURRENTLY ON idx (h);

-- Rewrites, truncation, drops.
CREATE TABLE gone AS SELECT g AS i, repeat('q', 300) AS v FROM generate_series(1, 3000) g;
CREATE INDEX ON gone (i);
TRUNCATE gone;
INSERT INTO gone SELECT g, 'again' FROM generate_series(1, 100) g;
BEGIN; TRUNCATE gone; INSERT INTO gone VALUES (1, 'x'); ROLLBACK;
CREATE TABLE dropped (LIKE t INCLUDING ALL);
INSERT INTO dropped SELECT * FROM t LIMIT 500;
DROP TABLE dropped;
BEGIN; CREATE TABLE never (x int); INSERT INTO never SELECT generate_series(1, 1000); ROLLBACK;
CLUSTER t USING t_pkey;
VACUUM FULL idx;
ALTER TABLE gone ALTER COLUMN i TYPE bigint;
CREATE UNLOGGED TABLE u (i int PRIMARY KEY, v text);
INSERT INTO u SELECT g, 'unlogged' FROM generate_series(1, 500) g;
CREATE UNLOGGED TABLE u2 (i int);
INSERT INTO u2 SELECT generate_series(1, 500);
ALTER TABLE u2 SET LOGGED;
CREATE MATERIALIZED VIEW m AS SELECT k, count(*) AS n FROM t GROUP BY k;
REFRESH MATERIALIZED VIEW m;

-- Shared relation maps and catalogs.
VACUUM FULL pg_class;
VACUUM FULL pg_authid;
REINDEX TABLE pg_proc;
CREATE ROLE somebody;

-- Prepared transactions, multixacts through them.
CREATE TABLE lockme AS SELECT g AS i, 0 AS n FROM generate_series(1, 3000) g;
ALTER TABLE lockme ADD PRIMARY KEY (i);
VACUUM (FREEZE) lockme;
BEGIN; SELECT count(*) FROM (SELECT * FROM lockme FOR KEY SHARE) s; PREPARE TRANSACTION 'holds locks';
BEGIN; SELECT count(*) FROM (SELECT * FROM lockme FOR KEY SHARE) s; PREPARE TRANSACTION 'holds more locks';
BEGIN; SELECT count(*) FROM (SELECT * FROM lockme WHERE i < 200 FOR SHARE) s; COMMIT;
UPDATE lockme SET n = n + 1 WHERE i % 2 = 0;
BEGIN; INSERT INTO t (k) VALUES (-7); SAVEPOINT s; INSERT INTO t (k) VALUES (-8); PREPARE TRANSACTION 'to commit';
BEGIN; CREATE TABLE prepared_table (x int); INSERT INTO prepared_table VALUES (1); PREPARE TRANSACTION 'to abort';
COMMIT PREPARED 'to commit';
ROLLBACK PREPARED 'to abort';
CHECKPOINT;
COMMIT PREPARED 'holds locks';
BEGIN; UPDATE lockme SET n = -1 WHERE i = 250; SAVEPOINT s; SELECT * FROM lockme WHERE i = 251 FOR SHARE; COMMIT;
SELECT count(*) FROM generate_series(1, 40) g, LATERAL (SELECT pg_current_xact_id()) x;
-- More than a page of pg_xact, in one transaction with its subtransactions.
CREATE TABLE burnt (turn int);
DO $$ BEGIN FOR turn IN 1..33000 LOOP
  BEGIN INSERT INTO burnt VALUES (turn); EXCEPTION WHEN division_by_zero THEN NULL; END;
END LOOP; END $$;
-- More than a page of pg_multixact/offsets; multixacts of many members.
DO $$ BEGIN FOR turn IN 1..2500 LOOP
  BEGIN PERFORM 1 FROM lockme WHERE i = turn FOR SHARE; EXCEPTION WHEN division_by_zero THEN NULL; END;
END LOOP; END $$;
DO $$ BEGIN FOR turn IN 1..400 LOOP
  BEGIN UPDATE lockme SET n = turn WHERE i = 1 + turn % 5; EXCEPTION WHEN division_by_zero THEN NULL; END;
END LOOP; END $$;

-- Tablespaces, databases by both strategies, logical messages, origins.
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE ts LOCATION '';
CREATE TABLE in_ts (x int PRIMARY KEY) TABLESPACE ts;
INSERT INTO in_ts SELECT generate_series(1, 5000);
ALTER TABLE gone SET TABLESPACE ts;
CREATE DATABASE by_log STRATEGY wal_log;
CREATE DATABASE by_copy STRATEGY file_copy TABLESPACE ts;
CREATE DATABASE to_drop STRATEGY wal_log;
DROP DATABASE to_drop;
ALTER DATABASE by_log SET TABLESPACE ts;
SELECT pg_replication_origin_create('origin');
SELECT pg_replication_origin_session_setup('origin');
BEGIN; INSERT INTO t (k) VALUES (-9); SELECT pg_replication_origin_xact_setup('0/AABBCC', now()); COMMIT;
BEGIN; INSERT INTO t (k) VALUES (-10); PREPARE TRANSACTION 'of the origin';
COMMIT PREPARED 'of the origin';
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_advance('origin', '0/BBCCDD');
SELECT length(pg_logical_emit_message(false, 'neon-file:pg_stat/test', 'content')::text) > 0;
SELECT pg_switch_wal() IS NOT NULL;
INSERT INTO t (k, v) SELECT g, 'last' FROM generate_series(1, 500) g;
\c by_copy
CREATE TABLE here AS SELECT generate_series(1, 1000) AS x;
UPDATE here SET x = x + 1;
\c by_log
CREATE TABLE there AS SELECT generate_series(1, 1000) AS x;
VACUUM (FREEZE) there;
VACUUM (FREEZE) pg_class;
