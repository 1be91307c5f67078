//! Which relations have pages in local spill files.
//!
//! An index build may change pages in shared buffers without WAL and log all of them at its end. If such a page
//! leaves shared buffers before, it is written to a spill file of its relation fork. A block is spilled if and
//! only if the file holds a page that is not all zeros at the block's place, so no list of blocks is needed; this
//! table only tells which forks have a file and how many blocks lie in it.
//!
//! A block's place is read and written only by the process that has the buffer's I/O in progress, so the table's
//! lock need not be held during file I/O. The count is raised before a page is written and lowered after it is
//! removed, so it is never below the number of pages in the file.

use std::fmt::Write;

use pg_types::{Oid, RelTag};

use crate::fixed_map::{Table, TableMut};
use crate::relation_size::ForkKey;

/// Folder of the spill files, relative to the data directory.
pub const SPILL_DIRECTORY: &str = "neon_spill";

/// Pages of one fork that are, or are about to be, in its file.
pub type Entry = u32;

/// The table under its exclusive lock.
pub type Spilled<'a> = TableMut<'a, ForkKey, Entry>;

/// File of a fork, relative to the data directory.
pub fn file_path(rel: RelTag) -> String {
    let mut path = String::from(SPILL_DIRECTORY);
    let locator = rel.locator;
    // Writing to a string does not fail.
    let _ =
        write!(path, "/{}_{}_{}.{}", locator.spc_oid, locator.db_oid, locator.rel_number, rel.fork);
    path
}

/// Whether the fork has a file.
pub fn has_file(spilled: Table<'_, ForkKey, Entry>, rel: RelTag) -> bool {
    spilled.get(&ForkKey::new(rel)).is_some()
}

/// A page is about to be written to a place that holds none. `false` when the table has no room for another fork:
/// the page must be kept in another way.
pub fn add_page(spilled: &mut Spilled<'_>, rel: RelTag) -> bool {
    let key = ForkKey::new(rel);
    match spilled.get_mut(&key) {
        Some(count) => {
            *count = count.saturating_add(1);
            true
        }
        None => spilled.try_insert(key, 1),
    }
}

/// A page was removed from the file. `true` when it was the last one: the file must go, before the lock does.
pub fn remove_page(spilled: &mut Spilled<'_>, rel: RelTag) -> bool {
    let key = ForkKey::new(rel);
    let Some(count) = spilled.get_mut(&key) else { return false };
    *count = count.saturating_sub(1);
    if *count > 0 {
        return false;
    }
    spilled.remove(&key);
    true
}

/// The fork is gone. `true` when it had a file, which must go before the lock does.
pub fn forget(spilled: &mut Spilled<'_>, rel: RelTag) -> bool {
    spilled.remove(&ForkKey::new(rel)).is_some()
}

/// The database is gone. Returns the forks that had a file, which must go before the lock does.
pub fn forget_database(spilled: &mut Spilled<'_>, db_oid: Oid) -> Vec<RelTag> {
    let forks: Vec<RelTag> = spilled
        .as_table()
        .iter()
        .filter_map(|(key, _)| key.rel())
        .filter(|rel| rel.locator.db_oid == db_oid)
        .collect();
    for rel in &forks {
        forget(spilled, *rel);
    }
    forks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed_map::Owned;
    use pg_types::{ForkNumber, RelFileLocator};
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn rel(number: u32) -> RelTag {
        RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: number }.fork(ForkNumber::Main)
    }

    #[test]
    fn names_are_unique_and_plain() {
        assert_eq!(file_path(rel(7)), "neon_spill/1663_5_7.main");
    }

    #[test]
    fn a_database_is_forgotten_alone() {
        let mut owned = Owned::<ForkKey, Entry>::new(4);
        assert!(add_page(&mut owned.table(), rel(1)));
        assert_eq!(forget_database(&mut owned.table(), 6), []);
        assert_eq!(forget_database(&mut owned.table(), 5), [rel(1)]);
        assert!(!has_file(owned.table().as_table(), rel(1)));
    }

    proptest! {
        #[test]
        fn counts_pages(
            capacity in 0usize..4,
            ops in prop::collection::vec((0u32..5, 0u8..3), 0..100),
        ) {
            let mut owned = Owned::<ForkKey, Entry>::new(capacity);
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (number, op) in ops {
                let known = model.contains_key(&number);
                match op {
                    0 => {
                        let room = known || model.len() < capacity;
                        prop_assert_eq!(add_page(&mut owned.table(), rel(number)), room);
                        if room { *model.entry(number).or_default() += 1; }
                    }
                    1 => {
                        let last = model.get(&number) == Some(&1);
                        prop_assert_eq!(remove_page(&mut owned.table(), rel(number)), last);
                        if last { model.remove(&number); }
                        else if let Some(count) = model.get_mut(&number) { *count -= 1; }
                    }
                    _ => {
                        prop_assert_eq!(forget(&mut owned.table(), rel(number)), known);
                        model.remove(&number);
                    }
                }
                for number in 0..5 {
                    prop_assert_eq!(
                        has_file(owned.table().as_table(), rel(number)),
                        model.contains_key(&number)
                    );
                }
            }
        }
    }
}
