//! An extension with an index method of its own, compiled against stock PostgreSQL's headers and not changed.
//!
//! pgvector builds its HNSW index in shared buffers without WAL and logs the pages at the end; with buffers
//! smaller than the index, pages leave them in between (L116).

use anyhow::{Result, ensure};
use pg_launch::PgInstall;
use system_tests::cluster::install_from_env;
use system_tests::{Cluster, Place};

const NEAREST: &str = "SELECT string_agg(id::text, ',' ORDER BY v <-> q) FROM (SELECT id, v, q FROM item, \
     (SELECT array_fill(0.5::real, ARRAY[32])::vector(32) AS q) AS query ORDER BY v <-> q LIMIT 20) AS n";

#[test]
fn pgvector_builds_an_index_bigger_than_the_buffers() -> Result<()> {
    let install: PgInstall = install_from_env("NEON_PG_INSTALL_PGVECTOR")?;
    let place = Place { install, ..Place::from_env()? };
    let cluster = Cluster::start(place)?;
    let endpoint = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    let mut client = endpoint.connect("postgres")?;
    client.batch_execute(
        "CREATE EXTENSION vector;
         SELECT setseed(0.42);
         CREATE TABLE item (id int PRIMARY KEY, v vector(32));
         INSERT INTO item SELECT n / 32 + 1, array_agg(random())::vector(32)
             FROM generate_series(0, 20000 * 32 - 1) n GROUP BY n / 32;
         SET maintenance_work_mem = '1MB';
         CREATE INDEX item_hnsw ON item USING hnsw (v vector_l2_ops);",
    )?;
    let size: i64 = client.query_one("SELECT pg_relation_size('item_hnsw')", &[])?.get(0);
    ensure!(size > 4 << 20, "the index has {size} bytes, too few to outgrow the buffers");
    drop(client);
    cluster.stop_endpoint(&endpoint, "immediate")?;
    cluster.start_endpoint(&endpoint)?;

    let mut client = endpoint.connect("postgres")?;
    client.batch_execute("SET enable_seqscan = off; SET hnsw.ef_search = 400;")?;
    let plan = client.query("EXPLAIN SELECT id FROM item ORDER BY v <-> array_fill(0.5::real, ARRAY[32])::vector(32) LIMIT 20", &[])?;
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    ensure!(plan.iter().any(|line| line.contains("item_hnsw")), "not by the index: {plan:?}");
    let by_index = system_tests::cluster::single_value(&mut client, NEAREST)?;
    client.batch_execute("SET enable_seqscan = on; SET enable_indexscan = off;")?;
    let exact = system_tests::cluster::single_value(&mut client, NEAREST)?;
    let (by_index, exact): (Vec<&str>, Vec<&str>) =
        (by_index.split(',').collect(), exact.split(',').collect());
    let found = exact.iter().filter(|id| by_index.contains(id)).count();
    // HNSW is approximate; a damaged index finds next to nothing.
    ensure!(
        found >= 18,
        "the index found {found} of the 20 nearest: {by_index:?}, exact {exact:?}"
    );
    Ok(())
}
