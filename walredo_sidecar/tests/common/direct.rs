//! A redo process driven by hand, for what the manager would not do.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};

use pg_types::{BLCKSZ, ForkNumber, Lsn, RelFileLocator};
use walredo_protocol::{BufferTag, put_apply, put_begin, put_get};
use walredo_sidecar::datadir::PrivateDir;
use walredo_sidecar::template::{CONFIG, Template};

use super::{PG_VERSION, open_dir, patched, system_user};

pub const LOCATOR: RelFileLocator = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

pub fn tag() -> BufferTag {
    BufferTag { rel: LOCATOR.fork(ForkNumber::Main), blkno: 0 }
}

/// A template and processes made from it.
pub struct Direct {
    dir: tempfile::TempDir,
    template: Template,
}

/// One process.
pub struct Process {
    pub child: Child,
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    _data_dir: PrivateDir,
}

impl Direct {
    pub fn new() -> Direct {
        let dir = open_dir();
        let user = system_user();
        let template =
            Template::open_or_create(&patched(), PG_VERSION, dir.path(), user.as_ref()).unwrap();
        Direct { dir, template }
    }

    /// Starts a process; `library` is preloaded in addition.
    pub fn start(&self, library: Option<&Path>) -> Process {
        self.start_in(self.data_dir(library))
    }

    /// Starts a process with further lines in its configuration.
    pub fn start_with(&self, settings: &str) -> Process {
        let data_dir = self.data_dir(None);
        let path = data_dir.path().join("postgresql.conf");
        std::fs::write(path, format!("{CONFIG}{settings}")).unwrap();
        self.start_in(data_dir)
    }

    fn start_in(&self, data_dir: PrivateDir) -> Process {
        let user = system_user();
        let mut command = patched().command("postgres", user.as_ref());
        command.arg("--wal-redo").env("PGDATA", data_dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Process { child, stdin, stdout, _data_dir: data_dir }
    }

    /// A data directory to start in.
    pub fn data_dir(&self, library: Option<&Path>) -> PrivateDir {
        let user = system_user();
        let data_dir = self.template.instantiate(self.dir.path(), user.as_ref()).unwrap();
        if let Some(library) = library {
            let path = data_dir.path().join("postgresql.conf");
            let preload = format!("shared_preload_libraries='{},neon'\n", library.display());
            let config = CONFIG.replace("shared_preload_libraries=neon\n", &preload);
            std::fs::write(path, config).unwrap();
        }
        data_dir
    }
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Begin, these records, get. The process may be gone before all is written.
    pub fn send(&mut self, records: &[Vec<u8>]) {
        let _ = self.stdin.write_all(&request_bytes(records));
    }

    /// Waits for one page.
    pub fn page(&mut self) -> std::io::Result<Vec<u8>> {
        let mut page = vec![0; BLCKSZ];
        self.stdout.read_exact(&mut page)?;
        Ok(page)
    }

    /// Closes the input; returns how it ended, what it answered and what it printed.
    pub fn finish(mut self) -> (ExitStatus, Vec<u8>, String) {
        drop(self.stdin);
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let mut stdout = Vec::new();
        self.stdout.read_to_end(&mut stdout).unwrap();
        (self.child.wait().unwrap(), stdout, stderr)
    }
}

/// Begin, these records, get.
pub fn request_bytes(records: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_begin(&mut bytes, tag());
    for (i, record) in (1u64..).zip(records) {
        put_apply(&mut bytes, Lsn(i * 0x1000), record);
    }
    put_get(&mut bytes, tag());
    bytes
}

/// A record with one reference to the target that makes the page, and this main data.
pub fn record(rmid: u8, info: u8, block_data: &[u8], main_data: &[u8]) -> Vec<u8> {
    let mut rec = vec![0; 24];
    rec[4..8].copy_from_slice(&1000u32.to_le_bytes());
    rec[16] = info;
    rec[17] = rmid;
    rec.push(0);
    // BKPBLOCK_WILL_INIT, BKPBLOCK_HAS_DATA
    rec.push(0x40 | if block_data.is_empty() { 0 } else { 0x20 });
    rec.extend_from_slice(&u16::try_from(block_data.len()).unwrap().to_le_bytes());
    for word in [LOCATOR.spc_oid, LOCATOR.db_oid, LOCATOR.rel_number, 0] {
        rec.extend_from_slice(&word.to_le_bytes());
    }
    rec.push(255);
    rec.push(u8::try_from(main_data.len()).unwrap());
    rec.extend_from_slice(block_data);
    rec.extend_from_slice(main_data);
    let len = u32::try_from(rec.len()).unwrap();
    rec[..4].copy_from_slice(&len.to_le_bytes());
    rec
}

/// XLOG_HEAP_INSERT of the first row of a new page.
pub fn first_insert(width: usize) -> Vec<u8> {
    let mut data = vec![1, 0, 0, 8, 24, 0];
    data.resize(6 + width, b'x');
    record(10, 0x80, &data, &[1, 0, 0])
}
