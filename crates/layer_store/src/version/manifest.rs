//! The manifest: which files make up a store. Bytes are drawn in the README.

use std::path::Path;

use pg_types::Lsn;

use crate::disk::Disk;
use crate::error::{Corrupt, IoFailed};
use crate::layer::LayerMeta;
use crate::layer::format::{Fields, corrupt};
use crate::store::RecordPosition;

/// File name of the manifest.
pub(crate) const MANIFEST: &str = "MANIFEST";
/// Name under which the next manifest is written.
pub(crate) const MANIFEST_NEXT: &str = "MANIFEST.next";

const MAGIC: [u8; 8] = *b"pgstore\n";
const FORMAT: u32 = 1;

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) start_lsn: Lsn,
    /// Branch point; `None` for a root store.
    pub(crate) ancestor_lsn: Option<Lsn>,
    pub(crate) consistent: RecordPosition,
    /// Greater than the number of every layer file ever made.
    pub(crate) next_sequence: u64,
    /// Level and description of each layer.
    pub(crate) layers: Vec<(u8, LayerMeta)>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.start_lsn.0.to_le_bytes());
        out.push(u8::from(self.ancestor_lsn.is_some()));
        out.extend_from_slice(&self.ancestor_lsn.unwrap_or_default().0.to_le_bytes());
        out.extend_from_slice(&self.consistent.last_record_lsn.0.to_le_bytes());
        out.extend_from_slice(&self.consistent.prev_record_lsn.0.to_le_bytes());
        out.extend_from_slice(&self.next_sequence.to_le_bytes());
        let count = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        for (level, meta) in &self.layers {
            out.push(*level);
            meta.write(&mut out);
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Reads a manifest's bytes; `path` is for the error.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<Manifest, Corrupt> {
        let (body, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| corrupt(path, 0, "manifest is too short"))?;
        let mut fields = Fields(body);
        if fields.take() != Some(MAGIC) {
            return Err(corrupt(path, 0, "no manifest"));
        }
        let (crc, computed) = (u32::from_le_bytes(*crc), crc32c::crc32c(body));
        if crc != computed {
            let what = format!("manifest checksum is {crc:08x}, computed {computed:08x}");
            return Err(corrupt(path, body.len() as u64, what));
        }
        match fields.u32() {
            Some(FORMAT) => {}
            other => return Err(corrupt(path, 8, format!("unknown manifest format {other:?}"))),
        }
        let manifest = Manifest::fields(&mut fields).filter(|_| fields.0.is_empty());
        manifest.ok_or_else(|| {
            corrupt(path, (body.len() - fields.0.len()) as u64, "manifest fields do not fit")
        })
    }

    fn fields(fields: &mut Fields<'_>) -> Option<Manifest> {
        let start_lsn = fields.lsn()?;
        let branched = match fields.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let ancestor_lsn = Some(fields.lsn()?).filter(|_| branched);
        let consistent =
            RecordPosition { last_record_lsn: fields.lsn()?, prev_record_lsn: fields.lsn()? };
        let next_sequence = fields.u64()?;
        let count = fields.u32()?;
        let mut layers = Vec::new();
        for _ in 0..count {
            layers.push((fields.u8()?, LayerMeta::read(fields)?));
        }
        Some(Manifest { start_lsn, ancestor_lsn, consistent, next_sequence, layers })
    }
}

/// How far a failed publication got.
#[derive(Debug)]
pub(crate) enum PublishError {
    /// The old manifest stands for sure.
    Before(IoFailed),
    /// Either manifest may stand after a crash.
    Unknown(IoFailed),
}

/// Replaces the manifest: write, sync, rename, sync the directory. After it returns the new one stands for good.
pub(crate) fn publish(disk: &Disk, dir: &Path, manifest: &Manifest) -> Result<(), PublishError> {
    let (next, current) = (dir.join(MANIFEST_NEXT), dir.join(MANIFEST));
    let write = || {
        disk.remove(&next)?;
        let mut file = disk.create(&next)?;
        file.write(&manifest.encode())?;
        file.sync()
    };
    write().map_err(PublishError::Before)?;
    disk.rename(&next, &current).map_err(PublishError::Unknown)?;
    disk.sync_dir(dir).map_err(PublishError::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::LayerKind;
    use pg_types::Key;
    use proptest::prelude::*;

    fn manifest(layers: u64) -> Manifest {
        let meta = |sequence| LayerMeta {
            sequence,
            kind: LayerKind::Delta,
            file_bytes: 1,
            file_crc: 2,
            versions: 3,
            min_key: Key::MIN,
            max_key: Key::MAX,
            min_lsn: Lsn(4),
            max_lsn: Lsn(5),
        };
        Manifest {
            start_lsn: Lsn(1),
            ancestor_lsn: (layers > 2).then_some(Lsn(9)),
            consistent: RecordPosition { last_record_lsn: Lsn(7), prev_record_lsn: Lsn(6) },
            next_sequence: layers,
            layers: (0..layers).map(|number| (0, meta(number))).collect(),
        }
    }

    proptest! {
        #[test]
        fn comes_back(layers in 0_u64..10) {
            let wanted = manifest(layers);
            let read = Manifest::decode(&wanted.encode(), Path::new("M")).unwrap();
            prop_assert_eq!(read, wanted);
        }

        #[test]
        fn any_cut_or_flip_is_noticed(at: proptest::sample::Index, bit in 0_u8..8) {
            let bytes = manifest(3).encode();
            let at = at.index(bytes.len());
            prop_assert!(Manifest::decode(&bytes[..at], Path::new("M")).is_err());
            let mut flipped = bytes;
            flipped[at] ^= 1 << bit;
            prop_assert!(Manifest::decode(&flipped, Path::new("M")).is_err());
        }

        #[test]
        fn fields_of_any_bytes_are_read_without_panic(body: Vec<u8>) {
            let mut bytes = [&MAGIC[..], &FORMAT.to_le_bytes(), &body].concat();
            bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            let _ = Manifest::decode(&bytes, Path::new("M"));
        }
    }
}
