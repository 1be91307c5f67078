//! All versions of a memtable in the order of a layer file.
//!
//! Chains and values lie all over memory, in the order in which they were put, so a plain walk waits for memory
//! most of the time. Here several chains are walked side by side and values are touched some versions ahead, so that
//! those waits overlap (measured: the flush of small values takes 30 % less).

use std::hint::black_box;

use pg_types::{Key, Lsn};

use super::{Index, Link, Memtable, Version, join};
use crate::value::ValueKind;

/// Chains walked side by side: more than a processor has cache misses in flight.
const LANES: usize = 32;
/// How far ahead values are touched.
const AHEAD: usize = 16;
/// Distance of the bytes that are touched: a cache line.
const LINE: usize = 64;
/// Of a long value only the start is touched; the processor sees the rest coming.
const LINES_MAX: usize = 4;

impl Memtable {
    /// Visits all versions by ascending key, for each key by ascending LSN. Only for a memtable that takes no more
    /// versions: its lock is held all the time.
    pub(crate) fn visit<E>(
        &self,
        mut visit: impl FnMut(Key, Lsn, ValueKind, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let index = self.read();
        let mut blocks: Vec<(u32, Link)> = Vec::new();
        let mut walk = Walk::default();
        for (prefix, number) in &index.order {
            let table = usize::try_from(*number).ok().and_then(|number| index.tables.get(number));
            blocks.clear();
            blocks.extend(table.into_iter().flatten().map(|(last, link)| (*last, *link)));
            blocks.sort_unstable();
            for lanes in blocks.chunks(LANES) {
                walk.collect(&index, lanes);
                for (at, (last, version)) in walk.ordered.iter().enumerate() {
                    if let Some((_, coming)) = walk.ordered.get(at + AHEAD) {
                        touch(index.slice(coming.blob));
                    }
                    let value = index.slice(version.blob);
                    visit(join(*prefix, *last), version.lsn, version.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

/// Versions of some keys.
#[derive(Default)]
struct Walk {
    heads: Vec<Link>,
    chains: [Vec<Version>; LANES],
    /// Last field of the key, and version; by key, then by LSN.
    ordered: Vec<(u32, Version)>,
}

impl Walk {
    fn collect(&mut self, index: &Index, lanes: &[(u32, Link)]) {
        self.heads.clear();
        self.heads.extend(lanes.iter().map(|(_, link)| *link));
        self.chains.iter_mut().for_each(Vec::clear);
        let mut going = true;
        while going {
            going = false;
            for (head, chain) in self.heads.iter_mut().zip(&mut self.chains) {
                if let Some(version) = index.log.get(*head) {
                    *head = version.older;
                    chain.push(*version);
                    going = true;
                }
            }
        }
        self.ordered.clear();
        for ((last, _), chain) in lanes.iter().zip(&self.chains) {
            self.ordered.extend(chain.iter().rev().map(|version| (*last, *version)));
        }
    }
}

/// Has the processor fetch a value's first lines.
fn touch(value: &[u8]) {
    for byte in value.iter().step_by(LINE).take(LINES_MAX) {
        black_box(*byte);
    }
}
