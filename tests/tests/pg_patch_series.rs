//! What `postgres_patches` promises about itself (L104–L106), checked on the files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Lines that all patches together may add.
const ADDED_LINES_LIMIT: usize = 300;

struct Patch {
    name: String,
    text: String,
}

impl Patch {
    fn added(&self) -> usize {
        self.text.lines().filter(|line| line.starts_with('+') && !line.starts_with("+++ ")).count()
    }

    fn files(&self) -> Vec<&str> {
        self.text.lines().filter_map(|line| line.strip_prefix("+++ b/")).collect()
    }

    /// What stands before the diff.
    fn header(&self) -> &str {
        self.text.split("\n---\n").next().unwrap_or_default()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../postgres_patches")
}

fn series() -> Result<Vec<Patch>> {
    let dir = folder().join("v17");
    let list = fs::read_to_string(dir.join("series"))?;
    list.lines()
        .map(|name| {
            let text = fs::read_to_string(dir.join(name))?;
            Ok(Patch { name: name.to_owned(), text })
        })
        .collect()
}

#[test]
fn all_patches_together_are_small() {
    assert!(!series().unwrap().is_empty());
    let added: usize = series().unwrap().iter().map(Patch::added).sum();
    assert!(added <= ADDED_LINES_LIMIT, "{added} added lines");
    let index = fs::read_to_string(folder().join("README.md")).unwrap();
    assert!(index.contains(&format!("(now {added})")), "the index should say {added} added lines");
}

#[test]
fn every_patch_file_is_in_the_series() {
    let mut names: Vec<String> = fs::read_dir(folder().join("v17"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "series")
        .collect();
    names.sort();
    let listed: Vec<_> = series().unwrap().into_iter().map(|patch| patch.name).collect();
    assert_eq!(names, listed, "files are numbered in the order they are applied");
}

#[test]
fn the_index_has_every_patch_with_every_heading() {
    let index = fs::read_to_string(folder().join("README.md")).unwrap();
    for patch in series().unwrap() {
        let stem = patch.name.strip_suffix(".patch").unwrap();
        let row = format!("| [{stem}](v17/{}) |", patch.name);
        let row = index.lines().find(|line| line.starts_with(&row)).expect(stem);
        assert!(
            row.ends_with(&format!(" | {} |", patch.added())),
            "{row}: {} lines",
            patch.added()
        );

        let entry = index.split(&format!("\n## {stem}\n")).nth(1).expect(stem);
        let entry = entry.split("\n## ").next().unwrap();
        for heading in ["Problem", "Files", "Why this way", "Way out", "Alternatives", "Upstream"] {
            let heading = format!("- **{heading}:** ");
            let line = entry.lines().find(|line| line.starts_with(&heading)).expect(&heading);
            assert!(line.len() > heading.len() + 3, "{stem}: {line}");
        }
        for file in patch.files() {
            assert!(entry.contains(&format!("`{file}`")), "{stem}: {file} is not in the index");
        }
    }
}

#[test]
fn every_patch_says_what_it_is_for() {
    for patch in series().unwrap() {
        let header = patch.header();
        for heading in
            ["Problem: ", "Class: ", "Files: ", "Way out: ", "Alternatives: ", "Upstream: "]
        {
            assert!(header.contains(&format!("\n{heading}")), "{}: no {heading}", patch.name);
        }
        let class = header.split("\nClass: ").nth(1).unwrap().lines().next().unwrap();
        assert!(
            ["compute", "redo", "compute and redo"].contains(&class),
            "{}: {class}",
            patch.name
        );
        for file in patch.files() {
            assert!(header.contains(file), "{}: {file} is not in its header", patch.name);
        }
    }
}

#[test]
fn no_struct_of_stock_changes() {
    for patch in series().unwrap() {
        for hunk in patch.text.split("\n@@ ").skip(1) {
            // git and diff name the surrounding function or type behind the second @@.
            let place = hunk.lines().next().unwrap().split(" @@").nth(1).unwrap_or_default();
            let changed = hunk.lines().skip(1).any(|line| line.starts_with('-'));
            assert!(
                !(place.contains("typedef struct") && changed),
                "{}: changes inside {place}",
                patch.name
            );
        }
        for line in patch.text.lines() {
            let removed = line.strip_prefix('-').unwrap_or_default();
            assert!(!removed.trim_start().starts_with("#define"), "{}: {line}", patch.name);
            assert!(!removed.starts_with("extern"), "{}: {line}", patch.name);
        }
    }
}
