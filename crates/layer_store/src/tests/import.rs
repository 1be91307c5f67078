//! Initial contents.

use pg_types::{Key, Lsn};

use super::{at, block, shared};
use crate::{Ancestor, LayerKind, Store, StoreError, WriteBatch};

#[test]
fn initial_images_are_read_below_later_changes() {
    let dir = tempfile::tempdir().unwrap();
    let shared = shared();
    let store = Store::create(&dir.path().join("s"), Lsn(64), None, &shared).unwrap();
    let mut import = store.import().unwrap();
    for number in 0..3000 {
        import.add(block(number), &number.to_le_bytes().repeat(300)).unwrap();
    }
    import.add(Key::CONTROL_FILE, b"control").unwrap();
    import.finish(Lsn(40)).unwrap();
    assert_eq!((store.last_record_lsn(), store.disk_consistent_lsn()), (Lsn(64), Lsn(64)));
    let mut batch = WriteBatch::new();
    batch.put_delta(block(7), Lsn(72), false, b"change");
    store.put(batch, at(72)).unwrap();
    store.flush().unwrap();
    let child = Store::create(
        &dir.path().join("c"),
        Lsn(72),
        Some(Ancestor { store: store.clone(), lsn: Lsn(72) }),
        &shared,
    )
    .unwrap();
    drop(store);
    let parent = child.ancestor().unwrap().store.clone();
    for store in [&parent, &child] {
        let value = store.get(block(7), Lsn(72)).unwrap();
        assert_eq!(value.base.unwrap().0, Lsn(64));
        assert_eq!(value.deltas.len(), 1);
        assert_eq!(store.get_image(Key::CONTROL_FILE, Lsn(64)).unwrap().unwrap().1, "control");
        assert!(store.get(block(3000), Lsn(72)).unwrap().is_missing());
        assert_eq!(store.scan_keys(Key::MIN..Key::MAX, Lsn(72)).unwrap().count(), 3001);
    }
    let levels: Vec<_> = parent.layers().iter().map(|layer| (layer.level, layer.kind)).collect();
    assert_eq!(levels, [(0, LayerKind::Delta), (6, LayerKind::Image)]);
}

#[test]
fn an_import_is_all_or_nothing_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::create(&path, Lsn(64), None, &shared()).unwrap();
    let mut import = store.import().unwrap();
    import.add(block(1), b"one").unwrap();
    assert!(matches!(import.add(block(1), b"again"), Err(StoreError::ImportOrder(_))));
    assert!(matches!(import.add(block(0), b"zero"), Err(StoreError::ImportOrder(_))));
    drop(import);
    let files = || std::fs::read_dir(&path).unwrap().count();
    assert_eq!(files(), 1, "the manifest alone");
    store.import().unwrap().finish(Lsn(40)).unwrap();
    assert_eq!(files(), 1);
    assert!(matches!(store.import(), Err(StoreError::ImportOrder(_))));
    assert!(store.get(block(1), Lsn(64)).unwrap().is_missing());
}
