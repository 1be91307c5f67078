-- Touches every resource manager that changes relation pages, each record kind as far as SQL can reach it.
CREATE EXTENSION IF NOT EXISTS bloom;
CHECKPOINT;
SET synchronous_commit = off;

-- heap: insert, multi-insert, update, HOT update, delete, lock, toast, speculative insert, visibility map
CREATE TABLE heap (id int PRIMARY KEY, a int, pad text) WITH (fillfactor = 80);
INSERT INTO heap SELECT i, i, repeat('x', i % 90) FROM generate_series(1, 4000) i;
CREATE TABLE copied (id int, pad text);
COPY copied FROM PROGRAM 'i=1; while [ $i -le 5000 ]; do echo "$i	row $i"; i=$((i+1)); done';
UPDATE heap SET a = a + 1 WHERE id % 3 = 0;
UPDATE heap SET pad = pad || 'longer than before, on another page' WHERE id % 7 = 0;
VACUUM heap, copied;
UPDATE heap SET a = a + 1 WHERE id % 50 = 0;
UPDATE heap SET pad = repeat('y', 300) WHERE id % 97 = 0;
DELETE FROM copied WHERE id % 5 = 0;
BEGIN; SELECT count(*) FROM (SELECT * FROM heap WHERE id < 200 FOR UPDATE) s; ROLLBACK;
BEGIN; SELECT count(*) FROM (SELECT * FROM heap WHERE id < 200 FOR KEY SHARE) s; COMMIT;
INSERT INTO heap VALUES (1, 1, 'again') ON CONFLICT (id) DO UPDATE SET a = 99;
INSERT INTO heap VALUES (100001, 1, 'new') ON CONFLICT (id) DO NOTHING;
BEGIN; SAVEPOINT a; INSERT INTO heap SELECT i, 1, 'gone' FROM generate_series(50001, 50100) i; ROLLBACK TO a; COMMIT;
CREATE TABLE toasted (id int, v text);
ALTER TABLE toasted ALTER v SET STORAGE external;
INSERT INTO toasted SELECT i, repeat(md5(i::text), 400) FROM generate_series(1, 40) i;
UPDATE toasted SET v = v || 'z' WHERE id % 2 = 0;
DELETE FROM heap WHERE id BETWEEN 1000 AND 2500;
VACUUM (FREEZE) heap;
VACUUM (FREEZE) copied;
INSERT INTO copied SELECT i, 'into frozen pages' FROM generate_series(1, 500) i;
DELETE FROM heap WHERE id > 3000;
VACUUM heap;
VACUUM FULL copied;
BEGIN; CREATE TABLE cids (a int); INSERT INTO cids VALUES (1); INSERT INTO cids VALUES (2); UPDATE cids SET a = a + 10; DELETE FROM cids WHERE a = 11; INSERT INTO cids SELECT i FROM generate_series(1, 700) i; COMMIT;

-- btree: splits at both ends and in the middle, deduplication, deletion of pages, vacuum, posting lists
CREATE TABLE bt (k int, d int);
CREATE INDEX bt_k ON bt (k);
CREATE INDEX bt_d ON bt (d);
INSERT INTO bt SELECT (i * 7919) % 20000, i % 11 FROM generate_series(1, 8000) i;
INSERT INTO bt SELECT i, 5 FROM generate_series(20000, 23000) i;
DELETE FROM bt WHERE k BETWEEN 3000 AND 15000;
VACUUM bt;
INSERT INTO bt SELECT i, i % 3 FROM generate_series(4000, 6000) i;
UPDATE bt SET d = d + 100 WHERE k % 5 = 0;
UPDATE bt SET d = d + 100 WHERE k % 5 = 0;
DELETE FROM bt;
VACUUM bt;
INSERT INTO bt SELECT i, i FROM generate_series(1, 1000) i;

-- hash: overflow pages, splits, squeezing, vacuum
CREATE TABLE hs (k int);
CREATE INDEX hs_k ON hs USING hash (k);
INSERT INTO hs SELECT i % 700 FROM generate_series(1, 9000) i;
DELETE FROM hs WHERE k % 3 = 0;
VACUUM hs;
INSERT INTO hs SELECT i FROM generate_series(1, 4000) i;
DELETE FROM hs WHERE k < 500;
VACUUM hs;
INSERT INTO hs SELECT 77 FROM generate_series(1, 1500);
DELETE FROM hs WHERE k = 77;
VACUUM hs;

-- gin: entry and data pages, posting trees, pending list, vacuum
CREATE TABLE gn (a int[]);
CREATE INDEX gn_fast ON gn USING gin (a) WITH (fastupdate = on, gin_pending_list_limit = 64);
CREATE INDEX gn_slow ON gn USING gin (a) WITH (fastupdate = off);
INSERT INTO gn SELECT ARRAY[1, i % 10, i % 100, i] FROM generate_series(1, 5000) i;
SELECT gin_clean_pending_list('gn_fast');
DELETE FROM gn WHERE a[4] % 2 = 0;
VACUUM gn;
INSERT INTO gn SELECT ARRAY[1, i] FROM generate_series(1, 2000) i;
DELETE FROM gn WHERE a[1] = 1;
VACUUM gn;

-- gist: splits, page deletion, killed items
CREATE TABLE gs (p point);
CREATE INDEX gs_p ON gs USING gist (p);
INSERT INTO gs SELECT point((i * 37) % 1000, (i * 91) % 1000) FROM generate_series(1, 5000) i;
CREATE INDEX gs_built ON gs USING gist (p);
DELETE FROM gs WHERE p[0] < 700;
VACUUM gs;
INSERT INTO gs SELECT point(i % 50, i % 70) FROM generate_series(1, 1500) i;
DELETE FROM gs;
VACUUM gs;
VACUUM gs;

-- spgist: inner tuples, picksplits, moves, redirects, vacuum
CREATE TABLE sp (p point, t text);
CREATE INDEX sp_p ON sp USING spgist (p);
CREATE INDEX sp_k ON sp USING spgist (p kd_point_ops);
CREATE INDEX sp_t ON sp USING spgist (t);
INSERT INTO sp SELECT point(random() * 100, random() * 100), md5((i % 300)::text) || i FROM generate_series(1, 5000) i;
DELETE FROM sp WHERE p[0] < 40;
VACUUM sp;
INSERT INTO sp SELECT point(i % 13, i % 17), 'http://example.com/' || i FROM generate_series(1, 2000) i;
VACUUM sp;

-- brin: summarizing, updates in place and not, desummarizing, revmap
CREATE TABLE br (a int, b text);
CREATE INDEX br_a ON br USING brin (a) WITH (pages_per_range = 1, autosummarize = off);
CREATE INDEX br_b ON br USING brin (b) WITH (pages_per_range = 1);
INSERT INTO br SELECT i, repeat('k', i % 100) FROM generate_series(1, 6000) i;
SELECT brin_summarize_new_values('br_a'), brin_summarize_new_values('br_b');
UPDATE br SET a = a * -1, b = b || 'longer' WHERE a % 11 = 0;
SELECT brin_desummarize_range('br_a', 1);
SELECT brin_summarize_range('br_a', 1);

-- sequences, generic WAL (bloom)
CREATE SEQUENCE sq;
SELECT count(nextval('sq')) FROM generate_series(1, 200);
SELECT setval('sq', 1000);
CREATE TABLE bl (a int, b int);
CREATE INDEX bl_i ON bl USING bloom (a, b);
INSERT INTO bl SELECT i, i * 3 FROM generate_series(1, 3000) i;
DELETE FROM bl WHERE a % 2 = 0;
VACUUM bl;

-- full page images: index builds, tablespace moves, unlogged to logged, rewritten tables
CREATE UNLOGGED TABLE un (a int PRIMARY KEY, b text);
INSERT INTO un SELECT i, 'u' FROM generate_series(1, 1500) i;
ALTER TABLE un SET LOGGED;
REINDEX TABLE heap;
CLUSTER heap USING heap_pkey;
TRUNCATE bt;
INSERT INTO bt VALUES (1, 1);
DROP TABLE gs;
CHECKPOINT;
UPDATE heap SET a = a + 1 WHERE id < 300;
INSERT INTO hs SELECT i FROM generate_series(1, 500) i;
INSERT INTO gn SELECT ARRAY[7, i] FROM generate_series(1, 300) i;
