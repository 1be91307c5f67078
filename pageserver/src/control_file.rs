//! `pg_control` (`ControlFileData` of `catalog/pg_control.h`), as PostgreSQL 17 lays it out on 64-bit
//! little-endian machines.

use pg_types::{BLCKSZ, Lsn, PG_TLI};
use wal_decoder::CheckPoint;
use wal_decoder::checkpoint::SIZE_OF_CHECKPOINT;

/// `PG_CONTROL_FILE_SIZE`: bytes of the file.
pub const PG_CONTROL_FILE_SIZE: usize = 8192;
/// `PG_CONTROL_VERSION` of PostgreSQL 17.
pub const PG_CONTROL_VERSION: u32 = 1700;
/// `CATALOG_VERSION_NO` of PostgreSQL 17 (`catalog/catversion.h`).
pub const CATALOG_VERSION_NO: u32 = 202_406_281;
/// `RELSEG_SIZE`: blocks in one file of a relation, 1 GiB.
pub const RELSEG_SIZE: u32 = 131_072;

const SYSTEM_IDENTIFIER: usize = 0;
const CONTROL_VERSION: usize = 8;
const CATALOG_VERSION: usize = 12;
const STATE: usize = 16;
const CHECKPOINT_LSN: usize = 32;
const CHECKPOINT_COPY: usize = 40;
const MIN_RECOVERY_POINT: usize = CHECKPOINT_COPY + SIZE_OF_CHECKPOINT + 8;
const MIN_RECOVERY_POINT_TLI: usize = MIN_RECOVERY_POINT + 8;
const BACKUP_START_POINT: usize = MIN_RECOVERY_POINT + 16;
const BACKUP_END_POINT: usize = BACKUP_START_POINT + 8;
const BACKUP_END_REQUIRED: usize = BACKUP_END_POINT + 8;
const MAX_ALIGN: usize = 204;
const FLOAT_FORMAT: usize = 208;
const BLOCK_SIZE: usize = 216;
const SEGMENT_BLOCKS: usize = 220;
const XLOG_BLOCK_SIZE: usize = 224;
const XLOG_SEGMENT_SIZE: usize = 228;
const NAME_DATA_LEN: usize = 232;
const INDEX_MAX_KEYS: usize = 236;
const DATA_CHECKSUM_VERSION: usize = 252;
const CRC: usize = 288;

const _: () = assert!(BACKUP_END_REQUIRED == 168);
const _: () = assert!(CRC + 4 <= 512, "PG_CONTROL_MAX_SAFE_SIZE");

/// `DBState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbState {
    /// `DB_STARTUP`.
    Startup = 0,
    /// `DB_SHUTDOWNED`: shut down cleanly, as a primary.
    Shutdowned = 1,
    /// `DB_SHUTDOWNED_IN_RECOVERY`.
    ShutdownedInRecovery = 2,
    /// `DB_SHUTDOWNING`.
    Shutdowning = 3,
    /// `DB_IN_CRASH_RECOVERY`.
    InCrashRecovery = 4,
    /// `DB_IN_ARCHIVE_RECOVERY`.
    InArchiveRecovery = 5,
    /// `DB_IN_PRODUCTION`.
    InProduction = 6,
}

impl DbState {
    fn from_number(number: u32) -> Option<DbState> {
        [
            DbState::Startup,
            DbState::Shutdowned,
            DbState::ShutdownedInRecovery,
            DbState::Shutdowning,
            DbState::InCrashRecovery,
            DbState::InArchiveRecovery,
            DbState::InProduction,
        ]
        .get(usize::try_from(number).ok()?)
        .copied()
    }
}

/// Why bytes are not a `pg_control` of a cluster that this system can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// Too few bytes.
    #[error("pg_control has {0} bytes, expected at least {min}", min = CRC + 4)]
    Short(usize),
    /// Another version of the file's format.
    #[error("pg_control has version {0}, expected {PG_CONTROL_VERSION} (PostgreSQL 17)")]
    Version(u32),
    /// The checksum is wrong.
    #[error("checksum of pg_control is {found:08x}, computed {computed:08x}")]
    Crc {
        /// In the file.
        found: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// Another version of the system catalogs: a development snapshot or a fork.
    #[error("catalog version is {0}, expected {CATALOG_VERSION_NO} (PostgreSQL 17)")]
    CatalogVersion(u32),
    /// A compile-time setting differs.
    #[error("the cluster was made with {name} {found}, expected {wanted}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// In the file.
        found: u32,
        /// Supported.
        wanted: u32,
    },
    /// Floating-point numbers of another format.
    #[error("the cluster was made on a machine with another floating-point format")]
    FloatFormat,
    /// The server was not shut down cleanly.
    #[error("the cluster is in state {found}, expected a clean shutdown (state 1)")]
    NotShutDown {
        /// `DBState` as a number.
        found: u32,
    },
    /// The server was on another Postgres timeline: it was promoted once.
    #[error("the cluster is on timeline {0}, only timeline {PG_TLI} can be imported")]
    Timeline(u32),
}

/// The contents of `pg_control`. Fields that this system does not touch are kept as they are.
#[derive(Clone, PartialEq, Eq)]
pub struct ControlFile {
    bytes: [u8; CRC],
    checkpoint: CheckPoint,
}

impl std::fmt::Debug for ControlFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlFile")
            .field("system_identifier", &self.system_identifier())
            .field("state", &self.state())
            .field("checkpoint_lsn", &self.checkpoint_lsn())
            .field("checkpoint", &self.checkpoint)
            .finish_non_exhaustive()
    }
}

impl ControlFile {
    /// Reads the file's bytes, as `get_controlfile` does: version, then checksum.
    pub fn decode(file: &[u8]) -> Result<ControlFile, ControlFileError> {
        let short = || ControlFileError::Short(file.len());
        let (bytes, rest) = file.split_first_chunk::<CRC>().ok_or_else(short)?;
        let found =
            rest.first_chunk::<4>().map(|crc| u32::from_le_bytes(*crc)).ok_or_else(short)?;
        let checkpoint = bytes.get(CHECKPOINT_COPY..).map(CheckPoint::decode);
        let checkpoint = checkpoint.and_then(Result::ok).ok_or_else(short)?;
        let control = ControlFile { bytes: *bytes, checkpoint };
        let version = control.u32_at(CONTROL_VERSION);
        if version != PG_CONTROL_VERSION {
            return Err(ControlFileError::Version(version));
        }
        let computed = crc32c::crc32c(bytes);
        if found != computed {
            return Err(ControlFileError::Crc { found, computed });
        }
        Ok(control)
    }

    /// The file: contents, checksum, zeros.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = self.bytes.to_vec();
        file.extend_from_slice(&crc32c::crc32c(&self.bytes).to_le_bytes());
        file.resize(PG_CONTROL_FILE_SIZE, 0);
        file
    }

    /// Checks that the cluster was made by a PostgreSQL 17 with the settings that this system is built for
    /// (`ReadControlFile` in `xlog.c` does the same against its own).
    pub fn check_compatible(&self) -> Result<(), ControlFileError> {
        let catalog = self.u32_at(CATALOG_VERSION);
        if catalog != CATALOG_VERSION_NO {
            return Err(ControlFileError::CatalogVersion(catalog));
        }
        let block = 8192;
        debug_assert_eq!(usize::try_from(block), Ok(BLCKSZ));
        let settings = [
            ("MAXALIGN", MAX_ALIGN, 8),
            ("BLCKSZ", BLOCK_SIZE, block),
            ("RELSEG_SIZE", SEGMENT_BLOCKS, RELSEG_SIZE),
            ("XLOG_BLCKSZ", XLOG_BLOCK_SIZE, block),
            ("WAL segment size", XLOG_SEGMENT_SIZE, 16 * 1024 * 1024),
            ("NAMEDATALEN", NAME_DATA_LEN, 64),
            ("INDEX_MAX_KEYS", INDEX_MAX_KEYS, 32),
        ];
        for (name, at, wanted) in settings {
            let found = self.u32_at(at);
            if found != wanted {
                return Err(ControlFileError::Setting { name, found, wanted });
            }
        }
        if self.array_at::<8>(FLOAT_FORMAT) != 1_234_567.0_f64.to_le_bytes() {
            return Err(ControlFileError::FloatFormat);
        }
        Ok(())
    }

    /// Checks that the cluster was shut down cleanly and never promoted, so that its files are all there is.
    pub fn check_shut_down(&self) -> Result<(), ControlFileError> {
        if self.state() != Some(DbState::Shutdowned) {
            return Err(ControlFileError::NotShutDown { found: self.u32_at(STATE) });
        }
        match self.checkpoint.this_tli {
            PG_TLI => Ok(()),
            other => Err(ControlFileError::Timeline(other)),
        }
    }

    /// `system_identifier`.
    pub fn system_identifier(&self) -> u64 {
        u64::from_le_bytes(self.array_at(SYSTEM_IDENTIFIER))
    }

    /// `state`; `None` for a number that is none.
    pub fn state(&self) -> Option<DbState> {
        DbState::from_number(self.u32_at(STATE))
    }

    /// Start of the latest checkpoint record.
    pub fn checkpoint_lsn(&self) -> Lsn {
        Lsn(u64::from_le_bytes(self.array_at(CHECKPOINT_LSN)))
    }

    /// Contents of the latest checkpoint record.
    pub fn checkpoint(&self) -> &CheckPoint {
        &self.checkpoint
    }

    /// Makes it the file of a server that was shut down cleanly, with its checkpoint record at `lsn`.
    pub fn set_shut_down_at(&mut self, lsn: Lsn, checkpoint: CheckPoint) {
        self.checkpoint = checkpoint;
        self.set(CHECKPOINT_COPY, &checkpoint.encode());
        self.set(STATE, &(DbState::Shutdowned as u32).to_le_bytes());
        self.set(CHECKPOINT_LSN, &lsn.0.to_le_bytes());
        // Leftovers of a recovery would ask for WAL that is not there.
        for at in [MIN_RECOVERY_POINT, BACKUP_START_POINT, BACKUP_END_POINT] {
            self.set(at, &[0; 8]);
        }
        self.set(MIN_RECOVERY_POINT_TLI, &[0; 4]);
        self.set(BACKUP_END_REQUIRED, &[0]);
    }

    /// `data_checksum_version`: 0 when pages carry no checksums.
    pub fn data_checksum_version(&self) -> u32 {
        self.u32_at(DATA_CHECKSUM_VERSION)
    }

    /// Says that pages carry no checksums. Pages that are rebuilt have none; the store has its own.
    pub fn clear_data_checksums(&mut self) {
        self.set(DATA_CHECKSUM_VERSION, &[0; 4]);
    }

    fn array_at<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at..at + N]);
        array
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array_at(at))
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A control file as a PostgreSQL 17 writes it after a clean shutdown.
    pub(crate) fn sample(checkpoint_lsn: Lsn) -> ControlFile {
        let checkpoint = CheckPoint {
            redo: checkpoint_lsn,
            this_tli: 1,
            prev_tli: 1,
            wal_level: 1,
            next_xid: 731,
            next_oid: 13_000,
            next_multi: 1,
            oldest_xid: 731,
            oldest_xid_db: 1,
            oldest_multi: 1,
            oldest_multi_db: 1,
            time: 1_700_000_000,
            ..CheckPoint::default()
        };
        let mut control = ControlFile { bytes: [0; CRC], checkpoint };
        control.set(CHECKPOINT_COPY, &checkpoint.encode());
        control.set(SYSTEM_IDENTIFIER, &0x7123_4567_89AB_CDEF_u64.to_le_bytes());
        for (at, value) in [
            (CONTROL_VERSION, PG_CONTROL_VERSION),
            (CATALOG_VERSION, CATALOG_VERSION_NO),
            (STATE, DbState::Shutdowned as u32),
            (MAX_ALIGN, 8),
            (BLOCK_SIZE, 8192),
            (SEGMENT_BLOCKS, RELSEG_SIZE),
            (XLOG_BLOCK_SIZE, 8192),
            (XLOG_SEGMENT_SIZE, 16 << 20),
            (NAME_DATA_LEN, 64),
            (INDEX_MAX_KEYS, 32),
        ] {
            control.set(at, &value.to_le_bytes());
        }
        control.set(CHECKPOINT_LSN, &checkpoint_lsn.0.to_le_bytes());
        control.set(FLOAT_FORMAT, &1_234_567.0_f64.to_le_bytes());
        control
    }

    #[test]
    fn round_trips_and_passes_its_own_checks() {
        let control = sample(Lsn(0x100_0028));
        let file = control.encode();
        assert_eq!(file.len(), PG_CONTROL_FILE_SIZE);
        let read = ControlFile::decode(&file).unwrap();
        assert_eq!(read, control);
        read.check_compatible().unwrap();
        read.check_shut_down().unwrap();
    }

    #[test]
    fn names_what_does_not_fit() {
        let mut control = sample(Lsn(0x100_0028));
        control.set(STATE, &6_u32.to_le_bytes());
        assert_eq!(control.check_shut_down(), Err(ControlFileError::NotShutDown { found: 6 }));
        control.set(XLOG_SEGMENT_SIZE, &(1_u32 << 20).to_le_bytes());
        let error = control.check_compatible().unwrap_err().to_string();
        assert_eq!(error, "the cluster was made with WAL segment size 1048576, expected 16777216");
        control.set(CONTROL_VERSION, &1300_u32.to_le_bytes());
        let error = ControlFile::decode(&control.encode()).unwrap_err();
        assert_eq!(error, ControlFileError::Version(1300));
    }

    #[test]
    fn a_shutdown_is_put_at_any_lsn() {
        let mut control = sample(Lsn(0x100_0028));
        control.set(MIN_RECOVERY_POINT, &77_u64.to_le_bytes());
        control.set(BACKUP_END_REQUIRED, &[1]);
        let checkpoint = CheckPoint { redo: Lsn(0x200_0028), this_tli: 1, ..Default::default() };
        control.set_shut_down_at(Lsn(0x200_0028), checkpoint);
        let read = ControlFile::decode(&control.encode()).unwrap();
        assert_eq!((read.checkpoint_lsn(), *read.checkpoint()), (Lsn(0x200_0028), checkpoint));
        assert_eq!(read.array_at::<8>(MIN_RECOVERY_POINT), [0; 8]);
        assert_eq!(read.array_at::<1>(BACKUP_END_REQUIRED), [0]);
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(at in 0..CRC + 4, bit in 0_u8..8) {
            let mut file = sample(Lsn(0x100_0028)).encode();
            file[at] ^= 1 << bit;
            prop_assert!(ControlFile::decode(&file).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(ControlFile::decode(&bytes).is_err());
        }
    }
}
