//! Life and death of timelines, crashes included, without PostgreSQL.

use pg_types::{Key, Lsn, TenantId};

use super::*;
use crate::fixture::{END, Fixture, START, TENANT, page, rel, save_metadata, timeline_id};
use crate::tenants::metadata::WalSource;

fn branch_of(ancestor: u8, id: u8, lsn: Option<Lsn>) -> NewTimeline {
    NewTimeline {
        timeline_id: timeline_id(id),
        ancestor_timeline_id: Some(timeline_id(ancestor)),
        ancestor_start_lsn: lsn,
        pg_version: 17,
    }
}

fn root(id: u8) -> NewTimeline {
    NewTimeline {
        timeline_id: timeline_id(id),
        ancestor_timeline_id: None,
        ancestor_start_lsn: None,
        pg_version: 17,
    }
}

fn states(tenants: &Tenants) -> Vec<(TimelineId, &'static str)> {
    let name = |slot: &Slot| match slot {
        Slot::Active(_) => "active",
        Slot::Broken { .. } => "broken",
        Slot::Busy { doing, .. } => doing,
    };
    tenants.tenant(TENANT).unwrap().list().iter().map(|(id, slot)| (*id, name(slot))).collect()
}

#[tokio::test]
async fn what_a_crash_left_half_done_is_removed_at_start() {
    let fixture = Fixture::new();
    fixture.timeline(timeline_id(1));
    // A creation that came as far as the store, and a deletion that came as far as the rename.
    fixture.timeline(timeline_id(2));
    std::fs::remove_file(fixture.timeline_dir(timeline_id(2)).join("metadata")).unwrap();
    fixture.timeline(timeline_id(3));
    layout::mark_deleted(&fixture.timeline_dir(timeline_id(3))).unwrap();
    // A write of the metadata that was cut off before its rename.
    let dir = fixture.timeline_dir(timeline_id(4));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("metadata.tmp"), b"neon timel").unwrap();

    let tenants = fixture.load().await;
    assert_eq!(states(&tenants), [(timeline_id(1), "active")]);
    let left = std::fs::read_dir(fixture.layout().timelines_dir(TENANT)).unwrap().count();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn a_broken_timeline_does_not_keep_others_from_serving() {
    let fixture = Fixture::new();
    for id in 1..=4 {
        fixture.timeline(timeline_id(id));
    }
    let tenants = fixture.load().await;
    tenants.create_timeline(TENANT, branch_of(3, 5, None)).await.unwrap();
    tenants.stop().await;

    std::fs::write(fixture.timeline_dir(timeline_id(2)).join("metadata"), b"junk").unwrap();
    std::fs::remove_dir_all(fixture.timeline_dir(timeline_id(3)).join("store")).unwrap();
    save_metadata(&fixture.timeline_dir(timeline_id(4)), timeline_id(9));

    let tenants = fixture.load().await;
    let expected = [(1, "active"), (2, "broken"), (3, "broken"), (4, "broken"), (5, "broken")];
    assert_eq!(states(&tenants), expected.map(|(id, state)| (timeline_id(id), state)));
    let error = tenants.timeline(TENANT, timeline_id(2)).unwrap_err().to_string();
    assert!(error.contains("broken") && error.contains("metadata is damaged"), "{error}");
    // What is broken can be deleted, but not below a branch.
    let error = tenants.delete_timeline(TENANT, timeline_id(3)).await.unwrap_err();
    assert!(matches!(error, TenantError::HasChildren { .. }), "{error}");
    for id in [2, 5, 3, 4] {
        tenants.delete_timeline(TENANT, timeline_id(id)).await.unwrap();
    }
    assert_eq!(states(&tenants), [(timeline_id(1), "active")]);
    let page_of_the_other = tenants
        .timeline(TENANT, timeline_id(1))
        .unwrap()
        .page_at(Key::rel_block(rel(), 0), END, END)
        .unwrap();
    assert_eq!(page_of_the_other.as_deref(), Some(&*page(2)));
}

#[tokio::test]
async fn rules_of_branch_points() {
    let fixture = Fixture::new();
    fixture.timeline(timeline_id(1));
    let tenants = fixture.load().await;
    let branch = |new| tenants.create_timeline(TENANT, new);

    for bad in [Lsn::INVALID, Lsn::MAX, Lsn(START.0 - 8)] {
        let error = branch(branch_of(1, 2, Some(bad))).await.unwrap_err();
        assert!(matches!(error, TenantError::BadBranchPoint { .. }), "{bad}: {error}");
    }
    let error = branch(branch_of(1, 2, Some(Lsn(END.0 + 8)))).await.unwrap_err();
    assert!(matches!(error, TenantError::BranchPointNotReached { .. }), "{error}");
    let error = branch(branch_of(7, 2, None)).await.unwrap_err();
    assert!(matches!(error, TenantError::TimelineNotFound { .. }), "{error}");
    let error =
        branch(NewTimeline { ancestor_timeline_id: None, ..branch_of(1, 2, Some(START)) }).await;
    assert!(matches!(error, Err(TenantError::BadRequest(_))));
    assert_eq!(states(&tenants), [(timeline_id(1), "active")], "refusals leave nothing behind");

    // Unaligned positions are rounded up.
    let (child, created) = branch(branch_of(1, 2, Some(Lsn(0x100_007B)))).await.unwrap();
    assert!(created);
    assert_eq!(child.metadata.ancestor.unwrap().lsn, Lsn(0x100_0080));
    assert_eq!(child.last_record_lsn(), Lsn(0x100_0080));
    let (_, created) = branch(branch_of(1, 2, Some(Lsn(0x100_0080)))).await.unwrap();
    assert!(!created, "the same once more is found");
    let error = branch(branch_of(1, 2, Some(END))).await.unwrap_err();
    assert!(matches!(error, TenantError::TimelineExists { .. }), "{error}");
    let error = branch(root(1)).await;
    assert!(error.is_ok_and(|(_, created)| !created));
    let error = branch(root(2)).await.unwrap_err();
    assert!(matches!(error, TenantError::TimelineExists { .. }), "{error}");

    // Below its own branch point a branch has nothing that its ancestor has not.
    let error = branch(branch_of(2, 3, Some(Lsn(0x100_0078)))).await.unwrap_err();
    assert!(error.to_string().contains("branch that one"), "{error}");
    branch(branch_of(2, 3, Some(Lsn(0x100_0080)))).await.unwrap();
}

#[tokio::test]
async fn a_branch_reads_its_ancestor_and_survives_a_restart() {
    let fixture = Fixture::new();
    fixture.timeline(timeline_id(1));
    let key = Key::rel_block(rel(), 0);
    let early = Lsn(0x100_0078);
    let check = |tenants: &Tenants| {
        let child = tenants.timeline(TENANT, timeline_id(2)).unwrap();
        assert_eq!(child.page_at(key, early, early).unwrap().as_deref(), Some(&*page(1)));
        assert_eq!(child.last_record_lsn(), early);
        let (parent, tip) = (tenants.timeline(TENANT, timeline_id(1)).unwrap(), END);
        assert_eq!(parent.page_at(key, tip, tip).unwrap().as_deref(), Some(&*page(2)));
    };
    let tenants = fixture.load().await;
    tenants.create_timeline(TENANT, branch_of(1, 2, Some(early))).await.unwrap();
    check(&tenants);
    drop(tenants);
    check(&*fixture.load().await);
}

#[tokio::test]
async fn a_deleted_timeline_stays_deleted() {
    let fixture = Fixture::new();
    fixture.timeline(timeline_id(1));
    let tenants = fixture.load().await;
    tenants.create_timeline(TENANT, branch_of(1, 2, None)).await.unwrap();
    let timeline = tenants.timeline(TENANT, timeline_id(2)).unwrap();

    let error = tenants.delete_timeline(TENANT, timeline_id(1)).await.unwrap_err();
    assert!(matches!(error, TenantError::HasChildren { .. }), "{error}");
    tenants.delete_timeline(TENANT, timeline_id(2)).await.unwrap();
    let error = tenants.timeline(TENANT, timeline_id(2)).unwrap_err();
    assert!(matches!(error, TenantError::TimelineNotFound { .. }), "{error}");
    let waiting = timeline.wait_lsn(Lsn(END.0 + 8)).await.unwrap_err();
    assert_eq!(waiting, crate::timeline::WaitError::Closed, "those who wait are told");
    tenants.delete_timeline(TENANT, timeline_id(1)).await.unwrap();
    assert!(states(&*fixture.load().await).is_empty());
}

#[tokio::test]
async fn tenants_come_and_go() {
    let fixture = Fixture::new();
    let tenants = fixture.load().await;
    let other = TenantId([1; 16]);
    tenants.create_tenant(other).await.unwrap();
    let error = tenants.create_tenant(other).await.unwrap_err();
    assert!(matches!(error, TenantError::TenantExists(_)), "{error}");
    drop(tenants);
    let tenants = fixture.load().await;
    assert_eq!(tenants.list().len(), 1);
    tenants.delete_tenant(other).await.unwrap();
    let error = tenants.delete_tenant(other).await.unwrap_err();
    assert!(matches!(error, TenantError::TenantNotFound(_)), "{error}");
    assert!(fixture.load().await.list().is_empty());
}

#[tokio::test]
async fn a_failed_initdb_is_quoted_and_leaves_nothing() {
    let fixture = Fixture::new();
    let tenants = fixture.load().await;
    tenants.create_tenant(TENANT).await.unwrap();
    let error = tenants.create_timeline(TENANT, root(1)).await.unwrap_err().to_string();
    assert!(error.contains("no cluster today"), "{error}");
    assert!(states(&tenants).is_empty());
    let error = tenants
        .create_timeline(TENANT, NewTimeline { pg_version: 16, ..root(1) })
        .await
        .unwrap_err();
    assert!(error.to_string().contains("version 16"), "{error}");
    assert_eq!(std::fs::read_dir(fixture.layout().tmp_dir()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_source_of_wal_is_remembered() {
    let fixture = Fixture::new();
    fixture.timeline(timeline_id(1));
    let tenants = fixture.load().await;
    let source = WalSource { safekeepers: vec!["localhost:1".to_owned()] };
    tenants.set_wal_source(TENANT, timeline_id(1), source.clone()).await.unwrap();
    tenants.stop().await;
    let tenants = fixture.load().await;
    let timeline = tenants.timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(timeline.receiver().source(), source);
    tenants.stop().await;
}
