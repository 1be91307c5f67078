//! Layers of many blocks.
#![expect(clippy::cast_possible_truncation, reason = "the low byte is wanted")]

use std::path::Path;
use std::sync::Arc;

use pg_types::{Key, Lsn};

use super::cursor::LayerCursor;
use super::{Layer, LayerMeta, LayerWriter};
use crate::cache::BlockCache;
use crate::disk::Disk;
use crate::value::{LayerKind, Search, ValueKind};

fn key(number: u32) -> Key {
    Key::from_fields(0, 1663, 5, 16384, 0, number)
}

fn write(dir: &Path, versions: impl Iterator<Item = (u32, u64, Vec<u8>)>) -> LayerMeta {
    let mut writer = LayerWriter::create(&Disk::default(), dir, 7, LayerKind::Delta).unwrap();
    for (number, lsn, value) in versions {
        writer.add(key(number), Lsn(lsn), ValueKind::Delta, &value).unwrap();
    }
    writer.finish().unwrap()
}

fn found(layer: &Layer, number: u32, lsn: u64) -> Vec<u64> {
    let mut search = Search::all();
    layer.search(key(number), Lsn(lsn), &mut search).unwrap();
    search.found.iter().map(|found| found.lsn.0).collect()
}

#[test]
fn a_key_over_many_blocks_is_found_whole() {
    let dir = tempfile::tempdir().unwrap();
    let chain = (1..=500).map(|lsn| (20, lsn * 8, vec![7; 300]));
    let before = (0..20).map(|number| (number, 8, vec![1]));
    let after = (21..40).map(|number| (number, 8, vec![1]));
    let meta = write(dir.path(), before.chain(chain).chain(after));
    let layer = Layer::open(dir.path(), meta, &BlockCache::new(1 << 20)).unwrap();
    let newest_first = |last: u64| (1..=last).rev().map(|lsn| lsn * 8).collect::<Vec<_>>();
    assert_eq!(found(&layer, 20, 4000), newest_first(500));
    assert_eq!(found(&layer, 20, 2007), newest_first(250));
    assert_eq!(found(&layer, 20, 7), Vec::<u64>::new());
    assert_eq!(found(&layer, 21, 4000), [8]);
    let layer = Arc::new(layer);
    for (lsn, newest) in [(4000, 4000), (1000, 1000), (8, 8)] {
        let cursor = LayerCursor::new(Arc::clone(&layer), key(19)..key(22), Lsn(lsn)).unwrap();
        let all: Vec<_> = cursor.map(|item| item.unwrap()).map(|(k, f)| (k, f.lsn.0)).collect();
        assert_eq!(all, [(key(19), 8), (key(20), newest), (key(21), 8)]);
    }
}

#[test]
fn many_index_blocks_are_searched_and_scanned() {
    let dir = tempfile::tempdir().unwrap();
    let noise =
        |number: u32| (0..4000_u32).map(|at| (at.wrapping_mul(number) >> 7) as u8).collect();
    let meta = write(dir.path(), (0..10_000).map(|number| (number * 2, 8, noise(number))));
    let layer = Arc::new(Layer::open(dir.path(), meta, &BlockCache::new(1 << 20)).unwrap());
    assert!(layer.fence(super::reader::Position { index: 3, entry: 0 }).unwrap().is_some());
    for number in (0..20_000).step_by(97) {
        let wanted: &[u64] = if number % 2 == 0 { &[8] } else { &[] };
        assert_eq!(found(&layer, number, 100), wanted, "{number}");
    }
    for (from, to) in [(0, 20_000), (1, 2), (4999, 5001), (19_998, 30_000), (20_000, 30_000)] {
        let cursor = LayerCursor::new(Arc::clone(&layer), key(from)..key(to), Lsn(8)).unwrap();
        let wanted = (from..to.min(20_000)).filter(|number| number % 2 == 0).map(key);
        let keys: Vec<Key> = cursor.map(|item| item.unwrap().0).collect();
        assert_eq!(keys, wanted.collect::<Vec<_>>(), "{from}..{to}");
    }
}

#[test]
fn an_absent_key_costs_no_data_read() {
    let dir = tempfile::tempdir().unwrap();
    let meta = write(dir.path(), (0..5000).map(|number| (number * 2, 8, vec![3; 200])));
    let layer = Layer::open(dir.path(), meta, &BlockCache::new(1 << 20)).unwrap();
    found(&layer, 0, 8);
    let before = layer.blocks_read();
    (0..2000).for_each(|number| assert_eq!(found(&layer, number * 2 + 1, 8), Vec::<u64>::new()));
    let read = layer.blocks_read() - before;
    assert!(read < 30, "{read} blocks for 2000 absent keys");
}
