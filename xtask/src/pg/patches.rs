//! The patch series.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// One patch file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// File name.
    pub name: String,
    /// Header and unified diff.
    pub text: String,
}

/// Patches in the order they are applied. The default is none: unpatched PostgreSQL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Series {
    /// The patches.
    pub patches: Vec<Patch>,
}

impl Series {
    /// Reads `series` in `dir` and the patches it lists, one name a line; `#` begins a comment.
    pub fn read(dir: &Path) -> Result<Series> {
        let list = dir.join("series");
        let text = std::fs::read_to_string(&list)
            .with_context(|| format!("could not read {}", list.display()))?;
        let mut patches = Vec::new();
        for name in
            text.lines().map(str::trim).filter(|name| !name.is_empty() && !name.starts_with('#'))
        {
            ensure!(
                !name.contains('/'),
                "{}: {name} is not the name of a file beside it",
                list.display()
            );
            let path = dir.join(name);
            let text = std::fs::read_to_string(&path).with_context(|| {
                format!("could not read {}, listed in {}", path.display(), list.display())
            })?;
            patches.push(Patch { name: name.to_owned(), text });
        }
        Ok(Series { patches })
    }
}

impl Patch {
    /// Applies the patch to a source tree; the error names the patch and what `patch` said.
    pub fn apply(&self, source: &Path) -> Result<()> {
        let input = source.join(".patch");
        std::fs::write(&input, &self.text)
            .with_context(|| format!("could not write {}", input.display()))?;
        let output = Command::new("patch")
            .current_dir(source)
            .args(["-p1", "--batch", "--forward", "--no-backup-if-mismatch", "--input"])
            .arg(&input)
            .output()
            .context("could not run `patch`")?;
        std::fs::remove_file(&input)?;
        if !output.status.success() {
            bail!(
                "the patch {} does not apply to {}:\n{}{}",
                self.name,
                source.display(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Lines that the patch adds.
    #[cfg(test)]
    pub fn added_lines(&self) -> usize {
        self.text.lines().filter(|line| line.starts_with('+') && !line.starts_with("+++ ")).count()
    }

    /// Files that the patch changes, as paths in the source tree.
    #[cfg(test)]
    pub fn files(&self) -> Vec<&str> {
        self.text.lines().filter_map(|line| line.strip_prefix("+++ b/")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const PATCH: &str =
        "what\n---\n--- a/file\n+++ b/file\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n";

    #[test]
    fn the_series_gives_the_order() {
        let dir = dir_with(&[
            ("series", "# first\n2.patch\n\n1.patch\n"),
            ("1.patch", "a"),
            ("2.patch", "b"),
        ]);
        let series = Series::read(dir.path()).unwrap();
        let names: Vec<_> = series.patches.iter().map(|patch| patch.name.as_str()).collect();
        assert_eq!(names, ["2.patch", "1.patch"]);
    }

    #[test]
    fn a_listed_patch_that_is_missing_is_named() {
        let dir = dir_with(&[("series", "1.patch\n")]);
        let error = format!("{:#}", Series::read(dir.path()).unwrap_err());
        assert!(error.contains("1.patch") && error.contains("series"), "{error}");
    }

    #[test]
    fn a_patch_is_applied() {
        let dir = dir_with(&[("file", "one\ntwo\nthree\n")]);
        let patch = Patch { name: "0001-x.patch".into(), text: PATCH.into() };
        patch.apply(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("file")).unwrap(), "one\nTWO\nthree\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!((patch.added_lines(), patch.files()), (1, vec!["file"]));
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named() {
        let dir = dir_with(&[("file", "1\n2\n3\n")]);
        let error = Patch { name: "0001-x.patch".into(), text: PATCH.into() }
            .apply(dir.path())
            .unwrap_err();
        assert!(error.to_string().contains("the patch 0001-x.patch does not apply"), "{error}");
        assert!(error.to_string().contains("Hunk #1 FAILED"), "{error}");
    }
}
