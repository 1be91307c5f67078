//! Rules of this tree that no other tool knows.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{capture, root};

/// Longest source file; STYLE.md says why.
const FILE_LINES_MAX: usize = 700;

/// One thing that is not as it should be.
#[derive(Debug)]
pub struct Finding {
    path: PathBuf,
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.message)
    }
}

/// Looks at every file that git tracks.
pub fn check_tree() -> Result<Vec<Finding>> {
    let root = root();
    let listing = capture(Command::new("git").current_dir(&root).arg("ls-files"))?;
    let mut findings = Vec::new();
    for path in listing.lines().map(Path::new) {
        let Ok(bytes) = fs::read(root.join(path)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        match path.extension().and_then(|ext| ext.to_str()) {
            Some("rs") => check_source(path, &text, &mut findings),
            Some("md") => check_links(&root, path, &text, &mut findings)?,
            _ => {}
        }
    }
    Ok(findings)
}

fn check_source(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let mut add = |line, message: String| {
        findings.push(Finding { path: path.to_owned(), line, message });
    };
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        add(lines, format!("{lines} lines: split it, one subject each (at most {FILE_LINES_MAX})"));
    }
    // Spelled apart so that this file does not find itself.
    let leftovers =
        [concat!("FIX", "ME"), concat!("XX", "X:"), concat!("TO", "DO"), concat!("#[ign", "ore")];
    for (index, line) in text.lines().enumerate() {
        for leftover in leftovers {
            if line.contains(leftover) {
                add(index + 1, format!("{leftover}: open work belongs into docs/known_gaps.md"));
            }
        }
        let in_ffi = path.components().any(|part| part.as_os_str() == "ffi");
        let code = line.trim_start();
        if !in_ffi && !code.starts_with("//") && code.contains(concat!("uns", "afe {")) {
            add(index + 1, "raw code belongs into an ffi/ folder".to_owned());
        }
    }
}

/// Paths in backquotes and links that look like files of this tree must exist.
fn check_links(root: &Path, path: &Path, text: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let parent = path.parent().context("a file has a parent")?;
    for (index, line) in text.lines().enumerate() {
        for target in link_targets(line) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !root.join(parent).join(target).exists() && !root.join(target).exists() {
                findings.push(Finding {
                    path: path.to_owned(),
                    line: index + 1,
                    message: format!("links to {target}, which does not exist"),
                });
            }
        }
    }
    Ok(())
}

/// Targets of `[text](target)` in a line.
fn link_targets(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_leftovers_and_raw_code_outside_its_folders() {
        let mut findings = Vec::new();
        let text = concat!("// TO", "DO later\nfn f() { uns", "afe { g() } }\n");
        check_source(Path::new("a/src/lib.rs"), text, &mut findings);
        assert_eq!(findings.len(), 2, "{findings:?}");
        check_source(Path::new("a/src/ffi/mod.rs"), concat!("uns", "afe { g() }"), &mut findings);
        assert_eq!(findings.len(), 2, "{findings:?}");
    }

    #[test]
    fn finds_targets_of_links() {
        assert_eq!(link_targets("see [a](b.md) and [c](d#e)"), ["b.md", "d#e"]);
        assert!(link_targets("no links (here)").is_empty());
    }
}
