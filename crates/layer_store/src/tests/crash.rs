//! Kill -9 and power loss before every single change of the disk, and failure of every single change.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pg_types::Lsn;

use super::{at, block, small};
use crate::disk::{Disk, Step};
use crate::{Options, Shared, Store, StoreError, WriteBatch};

const ROUNDS: u64 = 6;

/// Creates, imports, puts and flushes; `acknowledged` is told the durable LSN after each flush.
fn work(path: &Path, shared: &Shared, acknowledged: &dyn Fn(Lsn)) -> Result<(), StoreError> {
    let store = Store::create(path, Lsn(8), None, shared)?;
    let mut import = store.import()?;
    for number in 0..50 {
        import.add(block(number), &8_u64.to_le_bytes())?;
    }
    import.finish(Lsn(8))?;
    acknowledged(Lsn(8));
    for round in 2..=ROUNDS {
        put(&store, round);
        acknowledged(store.flush()?);
    }
    Ok(())
}

fn put(store: &Store, round: u64) {
    let mut batch = WriteBatch::new();
    for number in 0..50 {
        batch.put_image(block(number), Lsn(round * 8), &(round * 8).to_le_bytes());
    }
    store.put(batch, at(round * 8)).unwrap();
}

/// What a crash left must open (or hold no store, before anything was acknowledged), hold everything that was
/// acknowledged, and take new versions.
fn check(path: &Path, acknowledged: Lsn) {
    let shared = Shared::new(small());
    let store = match Store::open(path, None, &shared) {
        Ok(store) => store,
        Err(StoreError::NotAStore(_)) => {
            assert_eq!(acknowledged, Lsn::INVALID);
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let durable = store.disk_consistent_lsn();
    assert!(durable >= acknowledged, "{durable} < {acknowledged}");
    store.verify().unwrap();
    for lsn in (1..=durable.0 / 8).map(|round| Lsn(round * 8)) {
        for number in [0, 49] {
            let (_, value) = store.get_image(block(number), lsn).unwrap().unwrap();
            assert_eq!(&value[..], &lsn.0.to_le_bytes());
        }
    }
    let names: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), store.layers().len() + 1, "only what the manifest names: {names:?}");
    if durable.is_valid() {
        put(&store, durable.0 / 8 + 1);
        assert_eq!(store.flush().unwrap(), durable + 8);
    }
}

/// What of a directory would survive a loss of power: contents as of the last sync, entries as of the last sync of
/// the directory.
#[derive(Default)]
struct Durable {
    contents: HashMap<PathBuf, Vec<u8>>,
    entries: HashMap<PathBuf, PathBuf>,
    /// Renames and creations since: name to the name that the contents were synced under.
    names: HashMap<PathBuf, PathBuf>,
    /// Renames since, which may reach the disk before creations that came earlier.
    renamed: HashMap<PathBuf, PathBuf>,
}

impl Durable {
    /// Called after `step` was done.
    fn note(&mut self, step: &Step) {
        match step {
            Step::SyncFile(path) => {
                self.contents.insert(path.clone(), std::fs::read(path).unwrap());
            }
            Step::Create(path) => {
                self.contents.insert(path.clone(), Vec::new());
                self.names.insert(path.clone(), path.clone());
            }
            Step::Rename(from, to) => {
                let contents = self.contents.remove(from).unwrap();
                let inode = PathBuf::from(format!("{}#{}", to.display(), self.contents.len()));
                self.contents.insert(inode.clone(), contents);
                self.names.remove(from);
                self.names.insert(to.clone(), inode.clone());
                self.renamed.insert(to.clone(), inode);
            }
            Step::Remove(path) => {
                self.names.remove(path);
            }
            Step::SyncDir(_) => {
                self.entries = self.names.clone();
                self.renamed.clear();
            }
            Step::CreateDir(_) | Step::Write(_) => {}
        }
    }

    /// Makes the directory that a loss of power leaves: with what was synced alone, or with the renames that were
    /// not synced yet, too.
    fn restore(&self, to: &Path, with_renames: bool) {
        std::fs::create_dir_all(to).unwrap();
        let mut entries = self.entries.clone();
        if with_renames {
            entries.extend(self.renamed.clone());
        }
        for (name, inode) in &entries {
            let contents = self.contents.get(inode).cloned().unwrap_or_default();
            std::fs::write(to.join(name.file_name().unwrap()), contents).unwrap();
        }
    }
}

/// The state of a run as its hook sees it.
#[derive(Default)]
struct Run {
    steps: usize,
    last: Option<Step>,
    durable: Durable,
    acknowledged: Lsn,
    /// Directories left by a crash before each step, with what was acknowledged by then.
    crashes: Vec<(PathBuf, Lsn)>,
}

#[test]
fn a_crash_before_any_step_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let run = Arc::new(Mutex::new(Run::default()));
    let hook = {
        let (run, path, copies) = (Arc::clone(&run), path.clone(), dir.path().to_owned());
        move |step: &Step| {
            let mut run = run.lock().unwrap();
            let last = run.last.replace(step.clone());
            last.iter().for_each(|last| run.durable.note(last));
            let copy = |kind: &str| copies.join(format!("{kind}-{}", run.steps));
            let crashed = [copy("kill"), copy("power"), copy("power-renamed")];
            copy_dir(&path, &crashed[0]);
            run.durable.restore(&crashed[1], false);
            run.durable.restore(&crashed[2], true);
            let acknowledged = run.acknowledged;
            run.crashes.extend(crashed.map(|path| (path, acknowledged)));
            run.steps += 1;
            Ok(())
        }
    };
    let shared = Shared::with_disk(small(), Disk::with_hook(hook));
    work(&path, &shared, &|lsn| run.lock().unwrap().acknowledged = lsn).unwrap();
    let run = run.lock().unwrap();
    assert!(run.steps > 40, "{}", run.steps);
    assert_eq!(run.acknowledged, Lsn(ROUNDS * 8));
    for (crashed, acknowledged) in &run.crashes {
        check(crashed, *acknowledged);
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).into_iter().flatten() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Runs with the n-th step failing; says whether there was such a step.
fn run_with_failure(fail_at: usize) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let counter = Arc::new(Mutex::new(0));
    let hook = {
        let counter = Arc::clone(&counter);
        move |_: &Step| {
            let mut counter = counter.lock().unwrap();
            *counter += 1;
            if *counter == fail_at + 1 { Err(io::Error::other("injected")) } else { Ok(()) }
        }
    };
    let shared = Shared::with_disk(small(), Disk::with_hook(hook));
    let acknowledged = Mutex::new(Lsn::INVALID);
    let result = work(&path, &shared, &|lsn| *acknowledged.lock().unwrap() = lsn);
    if *counter.lock().unwrap() <= fail_at {
        result.unwrap();
        return false;
    }
    // The failure either reached the caller or was of a clean-up that does not matter.
    if let Err(error) = result {
        assert!(error.to_string().starts_with("could not"), "{error}");
    }
    check(&path, acknowledged.into_inner().unwrap());
    true
}

#[test]
fn a_failure_of_any_step_is_reported_and_loses_nothing_acknowledged() {
    let failures = (0..).take_while(|step| run_with_failure(*step)).count();
    assert!(failures > 40, "{failures}");
}

/// Puts once, fails the flush at a step of the given kind, and tries again.
fn flush_twice(fails: fn(&Step) -> bool) -> (Store, Result<Lsn, StoreError>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let armed = Arc::new(Mutex::new(false));
    let hook = {
        let armed = Arc::clone(&armed);
        move |step: &Step| {
            let mut armed = armed.lock().unwrap();
            let fail = *armed && fails(step);
            *armed &= !fail;
            if fail { Err(io::Error::other("injected")) } else { Ok(()) }
        }
    };
    let options = Options { memtable_flush_bytes: 1, ..small() };
    let shared = Shared::with_disk(options, Disk::with_hook(hook));
    let store = Store::create(&dir.path().join("s"), Lsn(8), None, &shared).unwrap();
    put(&store, 1);
    *armed.lock().unwrap() = true;
    assert!(matches!(store.flush(), Err(StoreError::Io(_))));
    assert_eq!(store.disk_consistent_lsn(), Lsn::INVALID);
    put(&store, 2);
    let (_, value) = store.get_image(block(7), Lsn(16)).unwrap().unwrap();
    assert_eq!(&value[..], &16_u64.to_le_bytes());
    let again = store.flush();
    (store, again, dir)
}

#[test]
fn a_failed_sync_is_never_repeated_on_the_same_file() {
    let (store, again, _dir) = flush_twice(|step| matches!(step, Step::SyncFile(_)));
    assert_eq!(again.unwrap(), Lsn(16));
    let paths: Vec<_> = store.layers().into_iter().map(|layer| layer.path).collect();
    assert_eq!(paths.len(), 2);
    assert!(paths.iter().all(|path| !path.ends_with("0000000000000001.layer")), "{paths:?}");
}

#[test]
fn an_unknown_manifest_stops_all_flushes() {
    let (store, again, _dir) = flush_twice(|step| matches!(step, Step::Rename(..)));
    assert!(matches!(again, Err(StoreError::Poisoned { .. })), "{again:?}");
    let wanted = store.inner.shared.wait_flush_wanted(Duration::ZERO);
    assert!(wanted.is_none(), "the flush loop is not held up by it");
    assert_eq!(store.disk_consistent_lsn(), Lsn::INVALID);
    drop(store);
}
