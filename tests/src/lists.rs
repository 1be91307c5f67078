//! Lists that only grow at their ends: the oracle of order, and of what readers were shown.
//!
//! Several clients append to the same few lists, others read them. A list that a reader has seen is a prefix of
//! everything that anybody sees of it later; an acknowledged append is in every read that begins afterwards, at the place
//! that its own answer named, once. That makes a violation of strict serializability visible in a single list, without a
//! search for cycles, because each read shows the whole order of what was before it (the idea of Elle).
//!
//! A full list is left alone and a new one begun, so that rows grow beyond a page's quarter (TOAST), but not without end.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use postgres::Client;

use crate::cluster::Endpoint;
use crate::load::{Clients, Meter, lock};

/// Lists that grow at the same time.
const GROWING: i32 = 5;
/// Elements of a full list.
const FULL: usize = 400;
/// Pause of a reader.
const READ_PAUSE: Duration = Duration::from_millis(2);
/// Violations that are kept; the first ones tell most.
const VIOLATIONS_MAX: usize = 10;

/// Makes the table.
pub fn create(client: &mut Client) -> Result<()> {
    Ok(client
        .batch_execute("CREATE TABLE list (id bigint PRIMARY KEY, elements bigint[] NOT NULL)")?)
}

/// What clients were told about one list.
#[derive(Debug, Default, Clone)]
struct Known {
    /// The longest version that somebody has read.
    seen: Vec<i64>,
    /// Acknowledged elements by their positions, which begin with 1.
    acknowledged: BTreeMap<usize, i64>,
}

impl Known {
    /// Compares what was read with what had been seen before the reading began, and with what is known by now.
    fn check_read(&self, before: &Known, read: &[i64]) -> Result<(), String> {
        let common = self.seen.len().min(read.len());
        if self.seen[..common] != read[..common] {
            return Err(format!("two readers saw different orders: {:?}, {read:?}", self.seen));
        }
        if read.len() < before.seen.len() {
            let (was, is) = (before.seen.len(), read.len());
            return Err(format!("it had {was} elements for a reader, and {is} for a later one"));
        }
        let missing = before
            .acknowledged
            .iter()
            .find(|(position, value)| read.get(position.wrapping_sub(1)) != Some(value));
        if let Some((position, value)) = missing {
            return Err(format!(
                "append of {value} was acknowledged at position {position}; a later reader saw {read:?}"
            ));
        }
        let distinct: HashSet<_> = read.iter().collect();
        if distinct.len() < read.len() {
            return Err(format!("an element is there twice: {read:?}"));
        }
        Ok(())
    }
}

/// All lists.
#[derive(Debug, Default)]
struct Lists {
    known: Mutex<BTreeMap<i64, Known>>,
    /// For each place among the growing lists, how many were filled there.
    filled: Vec<AtomicI64>,
    next_value: AtomicI64,
    reads: AtomicI64,
    violations: Mutex<Vec<String>>,
}

impl Lists {
    /// A list that grows, at random: its place and its id.
    fn pick(&self) -> (usize, i64) {
        let place = rand::random_range(0..self.filled.len());
        (place, self.id(place, self.filled[place].load(Ordering::Relaxed)))
    }

    fn id(&self, place: usize, filled: i64) -> i64 {
        filled * i64::from(GROWING) + i64::try_from(place).unwrap_or(0)
    }

    fn known(&self, id: i64) -> Known {
        lock(&self.known).get(&id).cloned().unwrap_or_default()
    }

    fn append(&self, client: &mut Client) -> Result<(), postgres::Error> {
        let (place, id) = self.pick();
        let value = self.next_value.fetch_add(1, Ordering::Relaxed);
        let row = client.query_one(
            "INSERT INTO list AS l VALUES ($1, ARRAY[$2::bigint])
             ON CONFLICT (id) DO UPDATE SET elements = l.elements || $2
             RETURNING cardinality(elements)",
            &[&id, &value],
        )?;
        let position = usize::try_from(row.get::<_, i32>(0)).unwrap_or(usize::MAX);
        let double = lock(&self.known).entry(id).or_default().acknowledged.insert(position, value);
        if let Some(other) = double {
            self.violated(id, format!("{other} and {value} were both told position {position}"));
        }
        if position >= FULL {
            let filled = id / i64::from(GROWING);
            // Somebody else may have done it.
            let _ = self.filled[place].compare_exchange(
                filled,
                filled + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        Ok(())
    }

    fn read(&self, client: &mut Client) -> Result<(), postgres::Error> {
        let (_, id) = self.pick();
        let before = self.known(id);
        let rows = client.query("SELECT elements FROM list WHERE id = $1", &[&id])?;
        let read: Vec<i64> = rows.first().map(|row| row.get(0)).unwrap_or_default();
        let mut all = lock(&self.known);
        let known = all.entry(id).or_default();
        let verdict = known.check_read(&before, &read);
        if known.seen.len() < read.len() {
            known.seen = read;
        }
        drop(all);
        if let Err(violation) = verdict {
            self.violated(id, violation);
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn violated(&self, id: i64, what: String) {
        let mut violations = lock(&self.violations);
        if violations.len() < VIOLATIONS_MAX {
            violations.push(format!("list {id}: {what}"));
        }
    }
}

/// Clients that append and read until they are stopped.
#[derive(Debug)]
pub struct Load {
    lists: Arc<Lists>,
    writers: Clients,
    readers: Clients,
}

/// What all clients were told, once they have ended.
#[derive(Debug)]
pub struct Told {
    lists: Arc<Lists>,
}

impl Load {
    /// Starts so many threads of each kind.
    pub fn start(endpoint: &Endpoint, writers: u32, readers: u32, meter: &Arc<Meter>) -> Load {
        let filled = (0..GROWING).map(|_| AtomicI64::new(0)).collect();
        let lists = Arc::new(Lists { filled, ..Lists::default() });
        let append = {
            let (lists, meter) = (Arc::clone(&lists), Arc::clone(meter));
            move |_, client: &mut Client| {
                lists.append(client)?;
                meter.acknowledge();
                Ok(())
            }
        };
        let read = {
            let lists = Arc::clone(&lists);
            move |_, client: &mut Client| {
                lists.read(client)?;
                // Leaves the processors to those who write.
                std::thread::sleep(READ_PAUSE);
                Ok(())
            }
        };
        let writers = Clients::start(endpoint, writers, meter, append);
        let readers = Clients::start(endpoint, readers, meter, read);
        Load { lists, writers, readers }
    }

    /// Stops the clients.
    pub fn finish(self) -> Result<Told> {
        self.writers.finish()?;
        self.readers.finish()?;
        Ok(Told { lists: self.lists })
    }
}

impl Told {
    /// Acknowledged appends.
    pub fn appends(&self) -> usize {
        lock(&self.lists.known).values().map(|known| known.acknowledged.len()).sum()
    }

    /// Reads that were compared.
    pub fn reads(&self) -> i64 {
        self.lists.reads.load(Ordering::Relaxed)
    }

    /// Checks what readers saw on the way, and every list as it is now.
    pub fn check(&self, client: &mut Client) -> Result<()> {
        let violations = lock(&self.lists.violations);
        ensure!(violations.is_empty(), "{}", violations.join("; "));
        let mut lists: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for row in client.query("SELECT id, elements FROM list", &[])? {
            lists.insert(row.get(0), row.get(1));
        }
        for (id, known) in lock(&self.lists.known).iter() {
            let list = lists.get(id).map(Vec::as_slice).unwrap_or_default();
            if let Err(violation) = known.check_read(known, list) {
                anyhow::bail!("list {id}: {violation}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(seen: &[i64], acknowledged: &[(usize, i64)]) -> Known {
        Known { seen: seen.to_vec(), acknowledged: acknowledged.iter().copied().collect() }
    }

    #[test]
    fn what_may_be_read() {
        let before = known(&[7, 8], &[(2, 8)]);
        for read in [&[7, 8][..], &[7, 8, 9], &[7, 8, 9, 4]] {
            before.check_read(&before, read).unwrap();
        }
        // Another reader was faster, and saw more.
        known(&[7, 8, 9], &[(2, 8), (3, 9)]).check_read(&before, &[7, 8]).unwrap();
        known(&[], &[]).check_read(&known(&[], &[]), &[]).unwrap();
    }

    #[test]
    fn what_may_not_be_read() {
        let before = known(&[7, 8], &[(2, 8)]);
        let refused = |before: &Known, now: &Known, read: &[i64], why: &str| {
            let error = now.check_read(before, read).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(&before, &before, &[7], "for a later one");
        refused(&before, &before, &[8, 7], "different orders");
        refused(&before, &known(&[7, 8, 9], &[]), &[7, 8, 5], "different orders");
        refused(&before, &before, &[7, 8, 7], "twice");
        let unread = known(&[], &[(2, 8)]);
        refused(&unread, &unread, &[7], "acknowledged at position 2");
        refused(&unread, &unread, &[7, 9], "acknowledged at position 2");
    }
}
