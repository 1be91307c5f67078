//! The store against a list of everything ever put.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use pg_types::{Key, Lsn};
use proptest::prelude::*;
use proptest::sample::Index;

use super::{at, block, shared};
use crate::{Ancestor, ReadError, Reconstruct, Shared, Store, Value, WriteBatch};

const START: u64 = 1000;

#[derive(Clone, Debug)]
enum Op {
    /// Versions, each some LSN steps after the one before.
    Put(Index, Vec<(Index, u64, Value)>),
    Flush(Index),
    /// Everything in memory is lost and put again.
    Reopen,
    /// A child at some LSN of a store.
    Branch(Index, Index),
}

/// A store and what it should hold.
struct Node {
    store: Store,
    dir: PathBuf,
    parent: Option<(usize, Lsn)>,
    log: Vec<(Key, Lsn, Value)>,
    last: Lsn,
}

/// Blocks, a size, and keys of sparse ranges that are (not) inherited.
fn keys() -> Vec<Key> {
    let mut keys: Vec<Key> = (0..6).map(block).collect();
    let rel = keys[0].to_rel_block().unwrap().0;
    keys.extend([Key::rel_size(rel), Key::rel_dir_entry(rel)]);
    keys.extend([Key::aux_file([1, 1], [7; 13]), Key::repl_origin(3), Key::database(1663, 5)]);
    keys.sort();
    keys
}

fn value() -> impl Strategy<Value = Value> {
    let data = (0_usize..1500, any::<u8>(), any::<bool>()).prop_map(|(len, byte, noise)| {
        let byte_at = |at: usize| if noise { byte.wrapping_mul((at * at) as u8) } else { byte };
        (0..len).map(byte_at).collect::<Bytes>()
    });
    (0_u8..8, data).prop_map(|(kind, data)| match kind {
        0..=3 => Value::Delta { will_init: false, data },
        4 => Value::Delta { will_init: true, data },
        5 => Value::Image(Bytes::new()),
        _ => Value::Image(data),
    })
}

fn op() -> impl Strategy<Value = Op> {
    let version = (any::<Index>(), 0_u64..3, value());
    prop_oneof![
        6 => (any::<Index>(), proptest::collection::vec(version, 0..60))
            .prop_map(|(node, versions)| Op::Put(node, versions)),
        3 => any::<Index>().prop_map(Op::Flush),
        1 => Just(Op::Reopen),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(node, lsn)| Op::Branch(node, lsn)),
    ]
}

/// What the list says about a key; `None` when some store has not come that far.
fn expected(nodes: &[Node], mut node: usize, key: Key, mut lsn: Lsn) -> Reconstruct {
    let mut found = Vec::new();
    loop {
        for (_, at, value) in
            nodes[node].log.iter().rev().filter(|(k, at, _)| *k == key && *at <= lsn)
        {
            found.push((*at, value.clone()));
            if !matches!(value, Value::Delta { will_init: false, .. }) {
                return assemble(found);
            }
        }
        match nodes[node].parent {
            Some((parent, branch_lsn)) if key.is_inherited() => {
                node = parent;
                lsn = lsn.min(branch_lsn);
            }
            _ => return assemble(found),
        }
    }
}

fn assemble(mut found: Vec<(Lsn, Value)>) -> Reconstruct {
    let mut result = Reconstruct::default();
    match found.last() {
        Some((_, Value::Image(_))) => {
            result.base = found.pop().map(|(lsn, value)| (lsn, value.data().clone()));
        }
        Some((_, Value::Delta { will_init, .. })) => result.first_will_init = *will_init,
        None => {}
    }
    result.deltas = found.iter().rev().map(|(lsn, value)| (*lsn, value.data().clone())).collect();
    result
}

/// What of a whole answer lies behind an LSN.
fn since(whole: &Reconstruct, floor: Lsn) -> Reconstruct {
    let is_behind = |lsn: Lsn| lsn > floor;
    Reconstruct {
        base: whole.base.clone().filter(|(lsn, _)| is_behind(*lsn)),
        deltas: whole.deltas.iter().filter(|(lsn, _)| is_behind(*lsn)).cloned().collect(),
        first_will_init: whole.first_will_init && is_behind(whole.deltas[0].0),
        layers_visited: 0,
    }
}

fn check(nodes: &[Node], node: usize, key: Key, lsn: Lsn) {
    let wanted = expected(nodes, node, key, lsn);
    let store = &nodes[node].store;
    let got = Reconstruct { layers_visited: 0, ..store.get(key, lsn).unwrap() };
    assert_eq!(got, wanted, "key {key} at {lsn} of store {node}");
    for floor in [Lsn::INVALID, Lsn(START), Lsn(u64::midpoint(START, lsn.0)), lsn] {
        let got = store.get_since(key, lsn, floor).unwrap();
        let got = Reconstruct { layers_visited: 0, ..got };
        assert_eq!(got, since(&wanted, floor), "key {key} at {lsn} behind {floor}, store {node}");
    }
    let image = match (wanted.deltas.is_empty(), wanted.base) {
        (true, base) => base.filter(|(_, data)| !data.is_empty()),
        (false, _) => {
            assert!(matches!(store.get_image(key, lsn), Err(ReadError::NotAnImage { .. })));
            return;
        }
    };
    assert_eq!(store.get_image(key, lsn).unwrap(), image);
}

fn check_scan(nodes: &[Node], node: usize, from: Key, to: Key, lsn: Lsn) {
    let store = &nodes[node].store;
    let all: Vec<_> = keys()
        .into_iter()
        .filter(|key| (from..to).contains(key))
        .map(|key| (key, expected(nodes, node, key, lsn)))
        .filter(|(_, value)| !value.is_missing())
        .collect();
    let found: Vec<Key> =
        store.scan_keys(from..to, lsn).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(found, all.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    match store.scan(from..to, lsn) {
        Ok(values) => {
            let wanted = all.into_iter().map(|(key, value)| (key, value.base.unwrap().1));
            assert_eq!(values, wanted.collect::<Vec<_>>());
        }
        Err(ReadError::NotAnImage { key, .. }) => {
            assert!(all.iter().any(|(k, value)| *k == key && !value.deltas.is_empty()));
        }
        Err(error) => panic!("{error}"),
    }
}

fn put(node: &mut Node, versions: Vec<(Index, u64, Value)>) {
    let keys = keys();
    let mut batch = WriteBatch::new();
    let mut lsn = node.last.0 + 1;
    for (key, step, value) in versions {
        lsn += step;
        let key = *key.get(&keys);
        batch.put(key, Lsn(lsn), &value);
        node.log.push((key, Lsn(lsn), value));
    }
    node.last = Lsn(lsn);
    node.store.put(batch, at(lsn)).unwrap();
}

fn reopen(nodes: &mut Vec<Node>, shared: &Shared) {
    let mut kept = Vec::new();
    for Node { store, dir, parent, log, last } in nodes.drain(..) {
        kept.push((dir, parent, log, last, store.disk_consistent_lsn()));
    }
    for (dir, parent, log, last, durable) in kept {
        let ancestor =
            parent.map(|(parent, lsn)| Ancestor { store: nodes[parent].store.clone(), lsn });
        let store = Store::open(&dir, ancestor, shared).unwrap();
        assert_eq!(store.last_record_lsn(), durable);
        let mut batch = WriteBatch::new();
        for (key, lsn, value) in log.iter().filter(|(_, lsn, _)| *lsn > durable) {
            batch.put(*key, *lsn, value);
        }
        if last > durable {
            assert!(matches!(store.get(block(0), last), Err(ReadError::NotReached { .. })));
            store.put(batch, at(last.0)).unwrap();
        }
        nodes.push(Node { store, dir, parent, log, last });
    }
}

fn apply(op: Op, nodes: &mut Vec<Node>, root: &Path, shared: &Shared) {
    match op {
        Op::Put(node, versions) => {
            let node = node.index(nodes.len());
            put(&mut nodes[node], versions);
        }
        Op::Flush(node) => {
            let node = &nodes[node.index(nodes.len())];
            assert_eq!(node.store.flush().unwrap(), node.last);
        }
        Op::Reopen => reopen(nodes, shared),
        Op::Branch(node, lsn) => {
            let parent = node.index(nodes.len());
            let first = nodes[parent].parent.map_or(START, |(_, lsn)| lsn.0);
            let lsn = Lsn(first + lsn.index((nodes[parent].last.0 - first + 1) as usize) as u64);
            let ancestor = Some(Ancestor { store: nodes[parent].store.clone(), lsn });
            let dir = root.join(nodes.len().to_string());
            let store = Store::create(&dir, lsn, ancestor, shared).unwrap();
            nodes.push(Node {
                store,
                dir,
                parent: Some((parent, lsn)),
                log: Vec::new(),
                last: lsn,
            });
        }
    }
}

fn new_root(dir: PathBuf, shared: &Shared) -> Node {
    let store = Store::create(&dir, Lsn(START), None, shared).unwrap();
    store.put(WriteBatch::new(), at(START)).unwrap();
    Node { store, dir, parent: None, log: Vec::new(), last: Lsn(START) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn store_equals_the_list(
        ops in proptest::collection::vec(op(), 1..25),
        probes in proptest::collection::vec((any::<Index>(), any::<Index>(), any::<Index>(), any::<Index>()), 40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let shared = shared();
        let mut nodes = vec![new_root(dir.path().join("0"), &shared)];
        for op in ops {
            apply(op, &mut nodes, dir.path(), &shared);
            for (node, key, to, lsn) in probes.iter().take(4) {
                probe(&nodes, *node, *key, *to, *lsn);
            }
        }
        for (node, key, to, lsn) in &probes {
            probe(&nodes, *node, *key, *to, *lsn);
        }
        for node in &nodes {
            node.store.verify().unwrap();
        }
    }
}

fn probe(nodes: &[Node], node: Index, key: Index, to: Index, lsn: Index) {
    let node = node.index(nodes.len());
    let lsn = Lsn(START + lsn.index((nodes[node].last.0 - START + 1) as usize) as u64);
    let keys = keys();
    check(nodes, node, *key.get(&keys), lsn);
    check_scan(nodes, node, *key.get(&keys), *to.get(&keys), lsn);
}

#[test]
fn lsns_out_of_reach_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = new_root(dir.path().join("0"), &shared());
    let store = &node.store;
    assert!(matches!(
        store.get(block(0), Lsn(START - 1)),
        Err(ReadError::BelowStart { start_lsn: Lsn(START), .. })
    ));
    assert!(matches!(store.get(block(0), Lsn::INVALID), Err(ReadError::BelowStart { .. })));
    assert!(matches!(
        store.get(block(0), Lsn(START + 1)),
        Err(ReadError::NotReached { last_record_lsn: Lsn(START), .. })
    ));
    assert!(store.get(block(0), Lsn(START)).unwrap().is_missing());
}

#[test]
fn batches_out_of_order_are_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let node = new_root(dir.path().join("0"), &shared());
    let store = &node.store;
    let mut outside = WriteBatch::new();
    outside.put_image(block(0), Lsn(START + 1), b"good");
    outside.put_image(block(1), Lsn(START), b"too old");
    let error = store.put(outside, at(START + 1)).unwrap_err();
    assert!(matches!(error, crate::PutError::OutsideBatch { lsn: Lsn(START), .. }), "{error}");
    let error = store.put(WriteBatch::new(), at(START - 1)).unwrap_err();
    assert!(matches!(error, crate::PutError::Backwards { .. }), "{error}");
    assert_eq!(store.last_record_lsn(), Lsn(START));
    store.put(WriteBatch::new(), at(START + 1)).unwrap();
    assert!(store.get(block(0), Lsn(START + 1)).unwrap().is_missing());
}

#[test]
fn prev_record_lsn_goes_with_its_position() {
    let dir = tempfile::tempdir().unwrap();
    let shared = shared();
    let node = new_root(dir.path().join("0"), &shared);
    node.store.flush().unwrap();
    node.store.put(WriteBatch::new(), at(START + 64)).unwrap();
    let tip = Ancestor { store: node.store.clone(), lsn: Lsn(START + 64) };
    let child = Store::create(&dir.path().join("1"), tip.lsn, Some(tip), &shared).unwrap();
    assert_eq!(child.position(), at(START + 64));
    let past = Ancestor { store: node.store.clone(), lsn: Lsn(START + 8) };
    let child = Store::create(&dir.path().join("2"), past.lsn, Some(past), &shared).unwrap();
    assert_eq!(child.position().prev_record_lsn, Lsn::INVALID);
    drop(node);
    drop(child);
    let reopened = Store::open(&dir.path().join("0"), None, &shared).unwrap();
    assert_eq!(reopened.position(), at(START));
}
