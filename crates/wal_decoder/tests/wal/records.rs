//! Block references, images and effects of single records.

use crate::build::{Image, REL, Record};
use bytes::Bytes;
use pg_types::page::{self, Page, ZERO_PAGE};
use pg_types::{ForkNumber, Lsn, RelFileLocator, SlruKind};
use proptest::prelude::*;
use wal_decoder::effects::{
    DatabaseDirectory, MultiXactMember, MultiXactTruncate, OriginProgress, Outcome,
    RelationTruncate, TransactionEnd, VmClear,
};
use wal_decoder::rmgr::*;
use wal_decoder::{DecodedRecord, Effect, RawRecord, image, interpret};

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn sample_page() -> Page {
    let mut page = ZERO_PAGE;
    for (at, byte) in page.iter_mut().enumerate() {
        if !(100..6000).contains(&at) {
            *byte = u8::try_from(at % 251).unwrap();
        }
    }
    page
}

fn without_hole(page: &Page) -> Vec<u8> {
    [&page[..100], &page[6000..]].concat()
}

fn restored(image: Image) -> Page {
    let record =
        Record::new(RM_XLOG_ID, 0xB0, 0).block_with_image(0, ForkNumber::Main, 9, &[], Some(image));
    let decoded = record.decoded();
    let block = decoded.block(0).unwrap();
    assert_eq!((block.rel.locator, block.blkno), (REL, 9));
    let mut page = [0xEE; 8192];
    image::restore(&decoded, block, &mut page).unwrap();
    page
}

#[test]
fn images_come_back_in_every_encoding() {
    let page = sample_page();
    let raw = without_hole(&page);
    let image = |bytes: Vec<u8>, info| Image { bytes, hole_offset: 100, hole_length: 5900, info };
    assert_eq!(restored(image(raw.clone(), 0x03)), page);
    assert_eq!(restored(image(lz4_flex::block::compress(&raw), 0x0B)), page);
    assert_eq!(restored(image(zstd::bulk::compress(&raw, 3).unwrap(), 0x13)), page);
    let mut literals = Vec::new();
    for group in raw.chunks(8) {
        literals.push(0);
        literals.extend(group);
    }
    assert_eq!(restored(image(literals, 0x07)), page);
    let whole = Image { bytes: page.to_vec(), hole_offset: 0, hole_length: 0, info: 0x02 };
    assert_eq!(restored(whole), page);
    let nothing = Image { bytes: Vec::new(), hole_offset: 0, hole_length: 0, info: 0x03 };
    let zeros = restored(nothing);
    assert!(page::is_new(&zeros) && zeros == ZERO_PAGE);
}

#[test]
fn a_corrupt_image_is_an_error() {
    let good = lz4_flex::block::compress(&without_hole(&sample_page()));
    for cut in [1, good.len() / 2] {
        let image = Image {
            bytes: good[..good.len() - cut].to_vec(),
            hole_offset: 100,
            hole_length: 5900,
            info: 0x0B,
        };
        let record = Record::new(RM_XLOG_ID, 0xB0, 0).block_with_image(
            0,
            ForkNumber::Main,
            9,
            &[],
            Some(image),
        );
        let decoded = record.decoded();
        image::restore(&decoded, decoded.block(0).unwrap(), &mut [0; 8192]).unwrap_err();
    }
}

fn vm(new: Option<u32>, old: Option<u32>, flags: u8) -> Vec<Effect> {
    vec![Effect::VmClear(VmClear { rel: REL, new_heap_blkno: new, old_heap_blkno: old, flags })]
}

#[test]
fn a_map_bit_is_cleared_once() {
    let insert = Record::new(RM_HEAP_ID, 0x00, 5).main(&[1, 0, 1]);
    let with_heap = insert.clone().block(0, ForkNumber::Main, 40_000, b"tuple");
    assert_eq!(with_heap.effects(), vm(Some(40_000), None, 3));
    assert_eq!(with_heap.clone().block(1, ForkNumber::Vm, 1, &[]).effects(), []);
    let untouched = with_heap.main(&[1, 0, 0]);
    assert_eq!(untouched.effects(), []);

    let lock = Record::new(RM_HEAP_ID, 0x60, 5).main(&[0, 0, 0, 0, 1, 0, 0, 1]);
    assert_eq!(lock.block(0, ForkNumber::Main, 3, &[]).effects(), vm(Some(3), None, 2));

    let update = |flags: u8| {
        let mut main = [0; 14];
        main[7] = flags;
        Record::new(RM_HEAP_ID, 0x20, 5).main(&main).block(0, ForkNumber::Main, 8, b"new")
    };
    assert_eq!(update(1).effects(), vm(None, Some(8), 3));
    let crossing = |flags| update(flags).block(1, ForkNumber::Main, 4, &[]);
    assert_eq!(crossing(1).effects(), vm(None, Some(4), 3));
    assert_eq!(crossing(2).effects(), vm(Some(8), None, 3));
    assert_eq!(crossing(3).effects(), vm(Some(8), Some(4), 3));
    assert_eq!(crossing(3).block(2, ForkNumber::Vm, 0, &[]).effects(), []);
    assert_eq!(crossing(3).block(3, ForkNumber::Vm, 0, &[]).effects(), []);
}

#[test]
fn neon_heap_records_have_a_trailer() {
    let mut main = vec![1, 0, 1];
    main.extend([0; 12]);
    let record = Record::new(RM_NEON_ID, 0x80, 5).block(0, ForkNumber::Main, 2, b"tuple");
    assert_eq!(record.clone().main(&main).effects(), vm(Some(2), None, 3));
    let mut effects = Vec::new();
    interpret(&record.main(&[1, 0, 1]).decoded(), &mut effects).unwrap_err();
    let extend = Record::new(RM_NEON_ID, 0x30, 0).main(&words(&[1663, 5, 77, 2, 12]));
    let rel = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 77 }.fork(ForkNumber::Vm);
    assert_eq!(extend.effects(), [Effect::RelationExtend { rel, nblocks: 12 }]);
}

#[test]
fn commit_prepared_skips_the_gid() {
    let mut main = 1234i64.to_le_bytes().to_vec();
    main.extend(words(&[0b1_1011_1111]));
    main.extend(words(&[5, 1663]));
    main.extend(words(&[2, 100, 101]));
    main.extend(words(&[1, 1663, 5, 16_400]));
    main.extend(words(&[1, 1, 2, 3]));
    main.extend(words(&[1, 1, 2, 3, 4]));
    main.extend(words(&[99]));
    main.extend(b"my prepared transaction\0");
    main.extend(0xDEAD_BEEFu64.to_le_bytes());
    main.extend(0i64.to_le_bytes());
    let record = Record::new(RM_XACT_ID, 0x30 | 0x80, 105).origin(7).main(&main);
    let end = TransactionEnd {
        xid: 99,
        subxacts: vec![100, 101],
        outcome: Outcome::Committed(1234),
        dropped: vec![RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16_400 }],
        prepared: true,
        origin: Some(OriginProgress { id: 7, remote_lsn: Lsn(0xDEAD_BEEF) }),
    };
    assert_eq!(record.effects(), [Effect::TransactionEnd(end)]);
}

#[test]
fn other_records_say_what_they_do() {
    let smgr = Record::new(RM_SMGR_ID, 0x20, 0).main(&words(&[6, 1663, 5, 77, 5]));
    let rel = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 77 };
    let truncate = RelationTruncate { rel, nblocks: 6, heap: true, vm: false, fsm: true };
    assert_eq!(smgr.effects(), [Effect::RelationTruncate(truncate)]);

    let create = Record::new(RM_MULTIXACT_ID, 0x20, 0).main(&words(&[8, 20, 1, 500, 4]));
    let members = vec![MultiXactMember { xid: 500, status: 4 }];
    assert_eq!(create.effects(), [Effect::MultiXactCreate { mid: 8, moff: 20, members }]);
    let truncate = Record::new(RM_MULTIXACT_ID, 0x30, 0).main(&words(&[5, 1, 2, 3, 4]));
    let what = MultiXactTruncate {
        oldest_multi_db: 5,
        start_trunc_off: 1,
        end_trunc_off: 2,
        start_trunc_memb: 3,
        end_trunc_memb: 4,
    };
    assert_eq!(truncate.effects(), [Effect::MultiXactTruncate(what)]);

    let zero = Record::new(RM_CLOG_ID, 0, 0).main(&33i64.to_le_bytes());
    assert_eq!(zero.effects(), [Effect::SlruZeroPage { kind: SlruKind::Clog, pageno: 33 }]);

    let drop = Record::new(RM_DBASE_ID, 0x20, 0).main(&words(&[5, 2, 1663, 70_000]));
    let gone = |spc_oid| Effect::DatabaseDrop(DatabaseDirectory { spc_oid, db_oid: 5 });
    assert_eq!(drop.effects(), [gone(1663), gone(70_000)]);
}

#[test]
fn files_in_messages() {
    let message = |prefix: &str, content: &[u8]| {
        let mut main = words(&[5, 0]);
        main.extend((prefix.len() as u64).to_le_bytes());
        main.extend((content.len() as u64).to_le_bytes());
        main.extend(prefix.as_bytes());
        main.extend(content);
        Record::new(RM_LOGICALMSG_ID, 0, 0).main(&main)
    };
    let file = message("neon-file:pg_replslot/s/state\0", b"abc");
    let path = "pg_replslot/s/state".to_owned();
    assert_eq!(file.effects(), [Effect::AuxFile { path, content: Bytes::from_static(b"abc") }]);
    assert_eq!(message("other\0", b"abc").effects(), []);
    for bad in
        ["neon-file:../../etc/passwd\0", "neon-file:/etc/passwd\0", "neon-file:a", "neon-file:\0"]
    {
        let mut effects = Vec::new();
        interpret(&message(bad, b"").decoded(), &mut effects).unwrap_err();
        assert_eq!(effects, []);
    }
}

#[test]
fn what_is_unknown_is_an_error() {
    for (rmid, info) in [
        (22, 0),
        (128, 0),
        (133, 0),
        (255, 0),
        (RM_XLOG_ID, 0xC0),
        (RM_SMGR_ID, 0x30),
        (RM_XACT_ID, 0x70),
    ] {
        let mut effects = Vec::new();
        let record = Record::new(rmid, info, 0).main(&[0; 100]).decoded();
        let error = interpret(&record, &mut effects).unwrap_err();
        assert!(
            matches!(error.kind, InterpretErrorKind::UnknownRmgr | InterpretErrorKind::UnknownInfo),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_decode_or_fail(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let len = u32::try_from(bytes.len()).unwrap();
        if let Some(slot) = bytes.get_mut(..4) {
            slot.copy_from_slice(&len.to_le_bytes());
        }
        check_total(bytes);
    }

    #[test]
    fn any_main_data_is_interpreted_or_refused(
        rmid in 0u8..22, neon: bool, info: u8, main in proptest::collection::vec(any::<u8>(), 0..120)
    ) {
        let rmid = if neon { RM_NEON_ID } else { rmid };
        let record = Record::new(rmid, info, 9)
            .main(&main)
            .block(0, ForkNumber::Main, 1, b"x")
            .block(1, ForkNumber::Main, 2, b"y");
        check_total(record.encode(Lsn(8)));
    }

    #[test]
    fn mutated_records_decode_or_fail(at: usize, byte: u8) {
        let image = Image {
            bytes: lz4_flex::block::compress(&without_hole(&sample_page())),
            hole_offset: 100,
            hole_length: 5900,
            info: 0x0B,
        };
        let mut bytes = Record::new(RM_HEAP_ID, 0x20, 9)
            .main(&[1; 14])
            .block_with_image(0, ForkNumber::Main, 1, b"data", Some(image))
            .block(1, ForkNumber::Main, 2, b"y")
            .encode(Lsn(8));
        let at = at % bytes.len();
        bytes[at] = byte;
        check_total(bytes);
    }
}

fn check_total(bytes: Vec<u8>) {
    let raw = RawRecord { start_lsn: Lsn(8), next_lsn: Lsn(64), bytes: Bytes::from(bytes) };
    let Ok(record) = DecodedRecord::decode(&raw) else { return };
    let mut page = ZERO_PAGE;
    for block in record.blocks() {
        let _ = image::restore(&record, block, &mut page);
        let _ = record.block_data(block);
    }
    let _ = interpret(&record, &mut Vec::new());
}
