//! Any damage to any file is noticed or harmless.

use std::path::{Path, PathBuf};

use pg_types::{Key, Lsn};
use proptest::prelude::*;
use proptest::sample::Index;

use super::{at, block, shared};
use crate::{Reconstruct, Store, WriteBatch};

const LAST: u64 = 8 * 40;

/// A store with an image layer and two delta layers of several blocks each.
fn build(path: &Path) {
    let store = Store::create(path, Lsn(8), None, &shared()).unwrap();
    let mut import = store.import().unwrap();
    for number in 0..40 {
        import.add(block(number), &vec![number as u8; 2000]).unwrap();
    }
    import.finish(Lsn(8)).unwrap();
    for round in 2..=40 {
        let mut batch = WriteBatch::new();
        for number in 0..round {
            let value: Vec<u8> = (0..300_u32).map(|at| (at * at * number) as u8).collect();
            batch.put_delta(block(number), Lsn(u64::from(round) * 8), false, &value);
        }
        store.put(batch, at(u64::from(round) * 8)).unwrap();
        if round % 20 == 0 {
            store.flush().unwrap();
        }
    }
}

fn read_all(path: &Path) -> Result<Vec<Reconstruct>, String> {
    let store = Store::open(path, None, &shared()).map_err(|error| error.to_string())?;
    let keys: Result<Vec<Key>, _> = store
        .scan_keys(Key::MIN..Key::MAX, Lsn(LAST))
        .map_err(|error| error.to_string())?
        .collect();
    let keys = keys.map_err(|error| error.to_string())?;
    keys.into_iter().map(|key| store.get(key, Lsn(LAST)).map_err(|e| e.to_string())).collect()
}

fn files(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in files(from) {
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Append(Vec<u8>),
    Zero(Index, u16),
    Delete,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), 0_u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        any::<Index>().prop_map(Damage::Cut),
        proptest::collection::vec(any::<u8>(), 1..100).prop_map(Damage::Append),
        (any::<Index>(), 1_u16..5000).prop_map(|(at, len)| Damage::Zero(at, len)),
        Just(Damage::Delete),
    ]
}

fn apply(damage: &Damage, file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let len = bytes.len();
    match damage {
        Damage::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
        Damage::Cut(at) => bytes.truncate(at.index(len)),
        Damage::Append(more) => bytes.extend_from_slice(more),
        Damage::Zero(at, count) => {
            let at = at.index(len);
            let end = len.min(at + usize::from(*count));
            bytes[at..end].fill(0);
        }
        Damage::Delete => return std::fs::remove_file(file).unwrap(),
    }
    std::fs::write(file, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damage_never_gives_a_wrong_answer(file: Index, damage in damage()) {
        use std::sync::OnceLock;
        static ORIGINAL: OnceLock<(tempfile::TempDir, Vec<Reconstruct>)> = OnceLock::new();
        let (original, wanted) = ORIGINAL.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            build(&dir.path().join("s"));
            let wanted = read_all(&dir.path().join("s")).unwrap();
            assert_eq!(wanted.len(), 40);
            (dir, wanted)
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        copy(&original.path().join("s"), &path);
        let files = files(&path);
        assert_eq!(files.len(), 4);
        let file = file.get(&files);
        let before = std::fs::read(file).unwrap();
        apply(&damage, file);
        let harmless = std::fs::read(file).is_ok_and(|after| after == before);
        let noticed = match read_all(&path) {
            Ok(answer) => {
                prop_assert_eq!(&answer, wanted);
                false
            }
            Err(error) => {
                let names_it = error.contains(file.file_name().unwrap().to_str().unwrap())
                    || error.contains("holds no store");
                prop_assert!(names_it, "{}", error);
                true
            }
        };
        // Damage in a part that no read needed is found by the check of whole files.
        if !harmless && !noticed {
            let store = Store::open(&path, None, &shared()).unwrap();
            prop_assert!(store.verify().is_err());
        }
    }
}
