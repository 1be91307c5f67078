//! A safekeeper that serves the WAL files of a cluster, and clusters with something in their WAL.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pageserver::tenants::metadata::WalSource;
use pg_types::{Lsn, xlog};
use pg_wire::postgres_backend::Timeouts;
use pg_wire::pq_proto::{RowDescriptor, TypeOid};
use pg_wire::replication::{PageserverFeedback, StandbyMessage, current_timestamp};
use pg_wire::{AuthType, BeMessage, Handler, PostgresBackend, QueryError, StartupParams};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{TENANT, config, import_cluster, install, new_cluster, open_tempdir};

/// Runs SQL in single-user mode: WAL as any server writes it, and a shutdown checkpoint at the end.
///
/// Gives what it prints.
pub fn run_sql(pgdata: &Path, sql: &str) -> String {
    let install = install("NEON_PG_STOCK");
    let user = pg_launch::unprivileged_user().unwrap();
    let mut command = install.command("postgres", user.as_ref());
    command.args(["--single", "-D"]).arg(pgdata).arg("postgres").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), sql.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("ERROR"), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// End of the last record, by `pg_controldata`: the shutdown checkpoint is the last record.
fn end_of_wal(pgdata: &Path) -> Lsn {
    let output: std::process::Output =
        Command::new(install("NEON_PG_STOCK").program("pg_controldata"))
            .arg(pgdata)
            .env("LD_LIBRARY_PATH", install("NEON_PG_STOCK").lib_dir())
            .output()
            .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("Latest checkpoint location:")).unwrap();
    let start: Lsn = line.rsplit(' ').next().unwrap().parse().unwrap();
    // A shutdown checkpoint has 114 bytes (`SizeOfXLogRecord`, 2, `sizeof(CheckPoint)`).
    (start + 114).align()
}

/// Serves the WAL files of a cluster up to `end`, in pieces of odd sizes, and notes what it is told.
pub struct FakeSafekeeper {
    pub pgdata: PathBuf,
    pub end: Lsn,
    /// Connections that end after so many bytes; when the list is used up, connections stay.
    pub cut_after: Mutex<Vec<u64>>,
    /// A byte of WAL to falsify.
    pub damage: Option<Lsn>,
    pub feedback: Mutex<Vec<PageserverFeedback>>,
    pub starts: Mutex<Vec<Lsn>>,
}

impl FakeSafekeeper {
    pub fn new(pgdata: &Path, end: Lsn) -> FakeSafekeeper {
        FakeSafekeeper {
            pgdata: pgdata.to_owned(),
            end,
            cut_after: Mutex::default(),
            damage: None,
            feedback: Mutex::default(),
            starts: Mutex::default(),
        }
    }

    pub async fn listen(self: &Arc<Self>, shutdown: &CancellationToken) -> WalSource {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (keeper, shutdown) = (Arc::clone(self), shutdown.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = shutdown.run_until_cancelled(listener.accept()).await
            {
                let (keeper, shutdown) = (Arc::clone(&keeper), shutdown.clone());
                tokio::spawn(async move {
                    let backend =
                        PostgresBackend::new(stream, AuthType::Trust, Timeouts::default());
                    let _ = backend.run(&mut Session(&keeper), &shutdown).await;
                });
            }
        });
        WalSource { safekeepers: vec![address] }
    }

    fn read(&self, start: Lsn, len: u64) -> Vec<u8> {
        let len = len.min(xlog::WAL_SEGMENT_SIZE - xlog::segment_offset(start));
        let name = xlog::segment_file_name(1, xlog::segment_number(start));
        let segment = std::fs::read(self.pgdata.join("pg_wal").join(name)).unwrap();
        let from = usize::try_from(xlog::segment_offset(start)).unwrap();
        let mut bytes = segment[from..from + usize::try_from(len).unwrap()].to_vec();
        if let Some(offset) = self.damage.and_then(|lsn| lsn.checked_sub(start))
            && let Some(byte) = bytes.get_mut(usize::try_from(offset).unwrap())
        {
            *byte ^= 1;
        }
        bytes
    }
}

/// Of the columns only the one that a page server looks at.
fn status(pgb: &mut PostgresBackend<TcpStream>, end: Lsn) -> Result<(), QueryError> {
    let column = RowDescriptor { name: "commit_lsn", type_oid: TypeOid::Text };
    pgb.write_message_noflush(&BeMessage::RowDescription(&[column]))?;
    pgb.write_message_noflush(&BeMessage::DataRow(&[Some(end.to_string().as_bytes())]))?;
    pgb.write_message_noflush(&BeMessage::CommandComplete("TIMELINE_STATUS"))?;
    Ok(())
}

struct Session<'a>(&'a Arc<FakeSafekeeper>);

impl Handler<TcpStream> for Session<'_> {
    fn startup(
        &mut self,
        _pgb: &mut PostgresBackend<TcpStream>,
        params: &StartupParams,
    ) -> Result<(), QueryError> {
        assert_eq!(params.option("tenant_id"), Some(TENANT.to_string()));
        Ok(())
    }

    async fn process_query(
        &mut self,
        pgb: &mut PostgresBackend<TcpStream>,
        query: &str,
    ) -> Result<(), QueryError> {
        let keeper = self.0;
        if query == "TIMELINE_STATUS" {
            return status(pgb, keeper.end);
        }
        let mut lsn: Lsn =
            query.strip_prefix("START_REPLICATION PHYSICAL ").unwrap().parse().unwrap();
        keeper.starts.lock().unwrap().push(lsn);
        let mut budget = keeper.cut_after.lock().unwrap().pop().unwrap_or(u64::MAX);
        pgb.write_message(&BeMessage::CopyBothResponse).await?;
        let mut pieces = [7, 8192, 1, 131_072, 24, 777].into_iter().cycle();
        while lsn < keeper.end {
            let len: u64 = pieces.next().unwrap_or(1);
            let data = keeper.read(lsn, len.min(keeper.end - lsn).min(budget));
            let wal = BeMessage::XLogData {
                wal_start: lsn,
                wal_end: keeper.end,
                timestamp: current_timestamp(),
                data: &data,
            };
            pgb.write_message(&wal).await?;
            lsn += data.len() as u64;
            budget -= data.len() as u64;
            if budget == 0 {
                return Err(QueryError::Reconnect);
            }
        }
        let mut alive = tokio::time::interval(Duration::from_millis(500));
        loop {
            let message = tokio::select! {
                message = pgb.read_copy_data() => message.map_err(QueryError::other)?,
                _ = alive.tick() => {
                    let (wal_end, timestamp) = (keeper.end, current_timestamp());
                    let reply_requested = false;
                    let alive = BeMessage::KeepAlive { wal_end, timestamp, reply_requested };
                    pgb.write_message(&alive).await?;
                    continue;
                }
            };
            if let Ok(StandbyMessage::PageserverFeedback(feedback)) = StandbyMessage::parse(message)
            {
                keeper.feedback.lock().unwrap().push(feedback);
            }
        }
    }
}

const SQL: &str = "\
    create table t (a int primary key, b text)\n\
    insert into t select n, repeat(n::text, 20) from generate_series(1, 5000) n\n\
    update t set b = b || 'x' where a % 7 = 0\n\
    delete from t where a % 11 = 0\n\
    create index on t (b)\n\
    vacuum t\n\
    insert into t select n, 'late' from generate_series(10000, 11000) n\n";

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub pgdata: PathBuf,
    pub config: pageserver::config::Config,
    pub end: Lsn,
}

/// A cluster that was imported as `initdb` left it and has written WAL since.
pub fn cluster_with_wal() -> Cluster {
    let dir = open_tempdir();
    let pgdata = new_cluster(dir.path());
    let config = config(dir.path());
    import_cluster(&pgdata, &config);
    run_sql(&pgdata, SQL);
    let end = end_of_wal(&pgdata);
    Cluster { dir, pgdata, config, end }
}
