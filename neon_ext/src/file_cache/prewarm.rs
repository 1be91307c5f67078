//! Filling the cache again after a start (L031, L032): which pages it had is saved, and asked for before anybody needs
//! them.
//!
//! The list says nothing about what is in a page. Each is asked for in its newest version and kept by [`super::fill`],
//! like one that a read-ahead brings, so queries and writers can go on meanwhile and a list of any age does no harm.
//! Nothing that is in the cache has to go for it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use compute_core::file_cache::SlotState;
use compute_core::file_cache::saved::{self, SavedError, SavedSpan};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use pg_types::{BlockNumber, ForkNumber, RelFileLocator, RelTag};

use super::stats::{self, Entry, add};
use crate::ffi::file_cache::{self as memory, Fixed};
use crate::ffi::guc_file_cache as guc;
use crate::ffi::latch::{self, LatchKeeper, WaitEvent};
use crate::ffi::process;
use crate::page_client;
use crate::smgr::{PageServerStorage, StorageManager};

/// The list's file in the data directory. `compute_ctl` carries it over from one data directory to the next.
const FILE: &str = "neon_file_cache.saved";
/// What the file is written as at first.
const NEW_FILE: &str = "neon_file_cache.saved.new";
/// Lost connections that one list survives.
const LOSSES_MAX: u32 = 10;
/// Pause after a lost connection.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the cache was not filled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are no list.
    #[error("this is no list of cached pages: {0}")]
    Saved(#[from] SavedError),
    /// The file with the list.
    #[error("could not read or write the list of cached pages: {0}")]
    Io(#[from] io::Error),
    /// Somebody fills it already.
    #[error("the local file cache is being filled already")]
    Busy,
    /// There is no cache.
    #[error("there is no local file cache, or it is off")]
    Off,
    /// The page server is away too often.
    #[error("{0}")]
    PageServer(#[from] page_client::Error),
}

/// Which pages are cached, as bytes; at most `most_chunks` of them, the most useful first. `None` without a cache.
pub fn state(most_chunks: usize) -> Option<Vec<u8>> {
    let (fixed, geometry) = memory::attached()?;
    if !fixed.is_on.load(Ordering::Acquire) {
        return None;
    }
    // Each partition's come from the oldest to the newest; their ages are comparable, as partitions are alike.
    let mut ranked: Vec<(usize, Entry)> = (0..geometry.partitions())
        .flat_map(|at| stats::entries_of(at).into_iter().rev().enumerate())
        .collect();
    ranked.sort_by_key(|(age, (_, _, uses))| (SlotState::USES_MAX.saturating_sub(*uses), *age));
    let spans = ranked.into_iter().filter_map(|(_, (key, chunk, _))| {
        let locator =
            RelFileLocator { spc_oid: key.spc_oid, db_oid: key.db_oid, rel_number: key.rel_number };
        let rel = locator.fork(ForkNumber::from_number(key.fork)?);
        let first = key.block.checked_mul(geometry.chunk_blocks())?;
        let blocks = chunk.available();
        (!blocks.is_empty()).then_some(SavedSpan { rel, first, blocks })
    });
    Some(saved::encode(&spans.take(most_chunks).collect::<Vec<_>>()))
}

/// Writes the list to its file, unless the cache is off or empty or the file has the same list.
pub fn save() -> Result<(), Error> {
    let Some(bytes) = state(usize::MAX) else { return Ok(()) };
    if bytes == saved::encode(&[]) || fs::read(FILE).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // Not synced: a file that a crash of the machine damages is refused, and costs nothing but time.
    fs::write(NEW_FILE, bytes)?;
    fs::rename(NEW_FILE, FILE)?;
    Ok(())
}

/// Fills the cache by the list in the file; without a file does nothing. Returns how many pages were brought.
pub fn restore() -> Result<Option<u64>, Error> {
    match fs::read(Path::new(FILE)) {
        Ok(bytes) => prewarm(&bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The process that works on a list, until dropped, also by an error that unwinds. One that is terminated leaves its number
/// behind, which counts for nothing once there is no such process.
struct Active(&'static Fixed);

fn is_at_work(owner: u64) -> bool {
    let pid = i32::try_from(owner).ok().filter(|pid| *pid > 0);
    pid.is_some_and(|pid| kill(Pid::from_raw(pid), None).is_ok())
}

impl Active {
    fn begin(fixed: &'static Fixed) -> Result<Active, Error> {
        let owner = &fixed.stats.prewarm_owner;
        let before = owner.load(Ordering::Acquire);
        if is_at_work(before) {
            return Err(Error::Busy);
        }
        let mine = u64::from(process::pid());
        owner
            .compare_exchange(before, mine, Ordering::AcqRel, Ordering::Acquire)
            .map_err(|_| Error::Busy)?;
        for number in [&fixed.stats.prewarmed, &fixed.stats.prewarm_skipped] {
            number.store(0, Ordering::Relaxed);
        }
        Ok(Active(fixed))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.stats.prewarm_owner.store(0, Ordering::Release);
    }
}

/// Fills the cache by a list. Returns how many pages were brought. Can be cancelled like a query.
pub fn prewarm(bytes: &[u8]) -> Result<u64, Error> {
    let spans = saved::decode(bytes)?;
    let Some((fixed, _)) = memory::attached() else { return Err(Error::Off) };
    if !fixed.is_on.load(Ordering::Acquire) {
        return Err(Error::Off);
    }
    let active = Active::begin(fixed)?;
    let total: u64 = spans.iter().map(|span| u64::from(span.blocks.len())).sum();
    fixed.stats.prewarm_total.store(total, Ordering::Relaxed);
    let mut losses = 0;
    let mut with_patience = |step: &mut dyn FnMut() -> Result<(), Error>| loop {
        match step() {
            Err(Error::PageServer(_)) if losses < LOSSES_MAX => {
                losses += 1;
                latch::pause(&mut LatchKeeper::default(), PAUSE, WaitEvent::Connect);
            }
            other => return other,
        }
    };
    let mut sizes = Sizes::default();
    for span in spans {
        with_patience(&mut || bring(fixed, &mut sizes, &span))?;
    }
    with_patience(&mut || Ok(page_client::settle()?))?;
    let prewarmed = fixed.stats.prewarmed.load(Ordering::Relaxed);
    // What was under way when a connection broke, or changed, or whose relation went away meanwhile.
    fixed.stats.prewarm_skipped.store(total.saturating_sub(prewarmed), Ordering::Relaxed);
    drop(active);
    Ok(prewarmed)
}

/// Sizes of the forks of a list; 0 for one that is gone.
#[derive(Default)]
struct Sizes(HashMap<RelTag, BlockNumber>);

impl Sizes {
    fn get(&mut self, rel: RelTag) -> BlockNumber {
        *self.0.entry(rel).or_insert_with(|| {
            let storage = PageServerStorage;
            // An error is what a page server answers, say of a fork that went away between the two questions.
            let exists = storage.exists(rel).unwrap_or(false);
            if exists { storage.nblocks(rel).unwrap_or(0) } else { 0 }
        })
    }
}

/// Asks for those blocks of a span that exist, are not cached, and have room.
fn bring(fixed: &Fixed, sizes: &mut Sizes, span: &SavedSpan) -> Result<(), Error> {
    let size = sizes.get(span.rel);
    let wanted: Vec<BlockNumber> = span
        .iter()
        .filter(|block| *block < size && !super::contains(span.rel, *block))
        .filter(|block| super::has_room(span.rel, *block))
        .collect();
    let skipped = span.blocks.len() as usize - wanted.len();
    page_client::ask_for_cache(span.rel, wanted, guc::prewarm_batch())?;
    add(&fixed.stats.prewarm_skipped, skipped as u64);
    Ok(())
}

/// Pages of the list, pages that were brought, pages that were not, processes at work. `None` without a cache.
pub fn progress() -> Option<[u64; 4]> {
    let (Fixed { stats, .. }, _) = memory::attached()?;
    let [total, prewarmed, skipped, owner] =
        [&stats.prewarm_total, &stats.prewarmed, &stats.prewarm_skipped, &stats.prewarm_owner]
            .map(|number| number.load(Ordering::Relaxed));
    Some([total, prewarmed, skipped, u64::from(is_at_work(owner))])
}
