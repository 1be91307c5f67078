//! Data directories with timelines made by hand, for tests that need no PostgreSQL.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layer_store::{RecordPosition, Shared, Store, WriteBatch};
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, RelFileLocator, RelTag, TenantId, TimelineId};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::tenants::Tenants;
use crate::tenants::layout::Layout;
use crate::tenants::metadata::{StateFile, TimelineMetadata};

pub(crate) const TENANT: TenantId = TenantId([0xAA; 16]);
/// Where hand-made timelines begin.
pub(crate) const START: Lsn = Lsn(0x100_0028);
/// Where they stand after [`Fixture::timeline`].
pub(crate) const END: Lsn = Lsn(0x100_0100);

/// A data directory that goes with its owner.
pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    pub(crate) config: Config,
}

pub(crate) fn timeline_id(number: u8) -> TimelineId {
    TimelineId([number; 16])
}

/// The relation that each hand-made timeline has.
pub(crate) fn rel() -> RelTag {
    RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16_384 }.fork(ForkNumber::Main)
}

/// A page that can be told from others; not all zeros.
pub(crate) fn page(fill: u8) -> Vec<u8> {
    vec![fill; BLCKSZ]
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let install = dir.path().join("install");
        std::fs::create_dir_all(install.join("bin")).unwrap();
        let mut config = Config::for_tests(&dir.path().join("data"), &install);
        config.wait_lsn_timeout = std::time::Duration::from_millis(50);
        let fixture = Fixture { dir, config };
        fixture.program("postgres", "exit 1");
        fixture.program("initdb", "echo no cluster today >&2; exit 1");
        fixture
    }

    /// Puts a shell script into the fake installation.
    pub(crate) fn program(&self, name: &str, script: &str) {
        let path = self.dir.path().join("install/bin").join(name);
        test_programs::write_program(&path, script).unwrap();
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::open(&self.config.data_dir).unwrap()
    }

    pub(crate) fn timeline_dir(&self, id: TimelineId) -> PathBuf {
        self.layout().timeline_dir(TENANT, id)
    }

    /// A root timeline with one relation of two blocks: block 0 is written at [`START`] and again at
    /// 0/1000080, block 1 never.
    pub(crate) fn timeline(&self, id: TimelineId) {
        let layout = self.layout();
        let store_dir = layout.store_dir(TENANT, id);
        std::fs::create_dir_all(&store_dir).unwrap();
        let shared = Shared::new(layer_store::Options::default());
        let store = Store::create(&store_dir, START, None, &shared).unwrap();
        let mut batch = WriteBatch::new();
        batch.put_image(Key::rel_dir_entry(rel()), START, b"r");
        batch.put_image(Key::rel_size(rel()), START, &2u32.to_le_bytes());
        batch.put_image(Key::rel_block(rel(), 0), START, &page(1));
        batch.put_image(Key::rel_block(rel(), 0), Lsn(0x100_0080), &page(2));
        // A block behind the end of the relation, as a truncation leaves it.
        batch.put_image(Key::rel_block(rel(), 2), START, &page(9));
        batch.put_image(Key::CHECKPOINT, START, &[0; 88]);
        let position = RecordPosition { last_record_lsn: END, prev_record_lsn: Lsn(0x100_0080) };
        store.put(batch, position).unwrap();
        store.flush().unwrap();
        save_metadata(&layout.timeline_dir(TENANT, id), id);
    }

    pub(crate) async fn load(&self) -> Arc<Tenants> {
        let config = Arc::new(self.config.clone());
        Tenants::load(config, CancellationToken::new()).unwrap()
    }
}

pub(crate) fn save_metadata(dir: &Path, timeline_id: TimelineId) {
    let metadata =
        TimelineMetadata { timeline_id, ancestor: None, pg_version: 17, initdb_lsn: START };
    metadata.save(dir).unwrap();
}
