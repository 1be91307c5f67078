//! WAL bytes to records, block references, images and per-resource-manager effects; total on any input
