//! A directory to a version: the manifest, the layers that it names, and nothing else.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::manifest::{MANIFEST, MANIFEST_NEXT, Manifest};
use super::{Version, VersionEdit};
use crate::cache::BlockCache;
use crate::disk::Disk;
use crate::error::{IoFailed, StoreError};
use crate::layer::Layer;
use crate::layer::format::{corrupt, parse_file_name};
use crate::store::RecordPosition;

/// Reads the manifest of a store.
pub(crate) fn read_manifest(dir: &Path) -> Result<Manifest, StoreError> {
    let path = dir.join(MANIFEST);
    let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::NotAStore(dir.to_owned()),
        _ => IoFailed::new("read", &path, error).into(),
    })?;
    let manifest = Manifest::decode(&bytes, &path)?;
    if manifest.layers.iter().any(|(_, meta)| meta.sequence >= manifest.next_sequence) {
        return Err(corrupt(&path, 0, "a layer's number was not given out yet").into());
    }
    Ok(manifest)
}

/// Opens every layer that the manifest names.
pub(crate) fn open_version(
    dir: &Path,
    manifest: &Manifest,
    cache: &BlockCache,
) -> Result<Version, StoreError> {
    let open = |(level, meta): &(u8, crate::layer::LayerMeta)| {
        Ok((*level, Arc::new(Layer::open(dir, meta.clone(), cache)?)))
    };
    let add = manifest.layers.iter().map(open).collect::<Result<_, StoreError>>()?;
    let edit = VersionEdit { add, consistent: manifest.consistent };
    Version::empty(RecordPosition::default())
        .apply(edit)
        .map_err(|rule| corrupt(&dir.join(MANIFEST), 0, rule).into())
}

/// Deletes files that a crash left behind: layers that no manifest names, and an unfinished manifest. Other files
/// are not ours to touch. Gives the first number that no layer file ever had.
pub(crate) fn remove_orphans(
    disk: &Disk,
    dir: &Path,
    manifest: &Manifest,
) -> Result<u64, StoreError> {
    let failed = |error| IoFailed::new("list", dir, error);
    let named: HashSet<u64> = manifest.layers.iter().map(|(_, meta)| meta.sequence).collect();
    let mut next_sequence = manifest.next_sequence;
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let sequence = parse_file_name(name);
        if name == MANIFEST_NEXT || sequence.is_some_and(|number| !named.contains(&number)) {
            tracing::info!("deleting {}, left behind by a crash", path.display());
            disk.remove(&path)?;
        }
        next_sequence = next_sequence.max(sequence.map_or(0, |number| number.saturating_add(1)));
    }
    Ok(next_sequence)
}
