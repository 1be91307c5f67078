use super::*;
use pg_types::{TenantId, TimelineId};

const START: Lsn = Lsn(0x100_0028);

fn request(timeline: u8) -> CreateTimeline {
    CreateTimeline {
        id: TenantTimelineId {
            tenant_id: TenantId([1; 16]),
            timeline_id: TimelineId([timeline; 16]),
        },
        mconf: MembershipConf::default(),
        pg_version: 170_011,
        system_id: 0,
        wal_seg_size: 16 * 1024 * 1024,
        start_lsn: START,
        commit_lsn: START,
    }
}

fn load(dir: &Path) -> Result<Arc<Timelines>, TimelinesError> {
    let metrics = Metrics::new().unwrap();
    Timelines::load(dir, NodeId(1), metrics, CancellationToken::new()).map(Arc::new)
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_is_idempotent_and_survives() {
    let dir = tempfile::tempdir().unwrap();
    let timelines = load(dir.path()).unwrap();
    assert!(timelines.create(request(2)).await.unwrap().1);
    assert!(!timelines.create(request(2)).await.unwrap().1);
    let other = CreateTimeline { start_lsn: Lsn(0x200_0028), ..request(2) };
    let error = timelines.create(other).await.unwrap_err();
    assert!(matches!(error, TimelinesError::Exists { start_lsn: START, .. }), "{error}");
    for bad in [
        CreateTimeline { start_lsn: Lsn(0), ..request(3) },
        CreateTimeline { start_lsn: Lsn(0x100_0029), ..request(3) },
        CreateTimeline { wal_seg_size: 1 << 20, ..request(3) },
        CreateTimeline { commit_lsn: Lsn(0x200_0028), ..request(3) },
    ] {
        let error = timelines.create(bad).await.unwrap_err();
        assert!(matches!(error, TimelinesError::BadRequest(_)), "{error}");
    }
    drop(timelines);
    let timelines = load(dir.path()).unwrap();
    assert_eq!(timelines.get(request(2).id).unwrap().progress().ladder.flush_lsn, START);
    assert!(matches!(timelines.get(request(3).id), Err(TimelinesError::NotFound(_))));
}

/// `[SK7]`
#[tokio::test(flavor = "multi_thread")]
async fn deletion_is_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let timelines = load(dir.path()).unwrap();
    timelines.create(request(2)).await.unwrap();
    assert!(timelines.delete(request(2).id).await.unwrap());
    assert!(!timelines.delete(request(2).id).await.unwrap());
    assert!(matches!(timelines.create(request(2)).await, Err(TimelinesError::Deleted(_))));
    assert!(matches!(timelines.delete(request(3).id).await, Err(TimelinesError::NotFound(_))));
    drop(timelines);
    let timelines = load(dir.path()).unwrap();
    assert!(matches!(timelines.create(request(2)).await, Err(TimelinesError::Deleted(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_tombstone_and_removal_is_finished_at_load() {
    let dir = tempfile::tempdir().unwrap();
    let timelines = load(dir.path()).unwrap();
    timelines.create(request(2)).await.unwrap();
    let (files, tombstone) =
        (timelines.dir(request(2).id), timelines.tombstone_path(request(2).id));
    drop(timelines);
    fs::write(&tombstone, b"").unwrap();
    fs::create_dir(durable::temporary_beside(&files)).unwrap();
    let timelines = load(dir.path()).unwrap();
    assert!(!files.exists() && !durable::temporary_beside(&files).exists());
    assert!(matches!(timelines.get(request(2).id), Err(TimelinesError::NotFound(_))));
}

/// `[SK3]`
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_control_file_quarantines_its_timeline_only() {
    let dir = tempfile::tempdir().unwrap();
    let timelines = load(dir.path()).unwrap();
    timelines.create(request(2)).await.unwrap();
    timelines.create(request(3)).await.unwrap();
    let path = timelines.dir(request(2).id).join(crate::control_file::CONTROL_FILE_NAME);
    drop(timelines);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let timelines = load(dir.path()).unwrap();
    let error = timelines.get(request(2).id).unwrap_err();
    assert!(error.to_string().contains("quarantined: control file has CRC"), "{error}");
    timelines.get(request(3).id).unwrap();
    // It cannot be created over what is there, but it can be deleted.
    assert!(timelines.create(request(2)).await.is_err());
    assert!(timelines.delete(request(2).id).await.unwrap());
}

#[test]
fn a_directory_belongs_to_one_safekeeper() {
    let dir = tempfile::tempdir().unwrap();
    load(dir.path()).unwrap();
    let metrics = Metrics::new().unwrap();
    let error = Timelines::load(dir.path(), NodeId(2), metrics, CancellationToken::new());
    assert!(matches!(error, Err(TimelinesError::OtherSafekeeper { .. })));
}
