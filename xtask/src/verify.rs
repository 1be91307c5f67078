//! `cargo xtask verify` (never writes) and `cargo xtask fix` (does).

use anyhow::{Result, ensure};

use crate::build::cargo_with_postgres;
use crate::pg;
use crate::run::{cargo, check, step};
use crate::tidy;

/// Format, lints, documentation and the project's own rules.
pub fn verify() -> Result<()> {
    step("check the format", || check(&mut cargo(&["fmt", "--all", "--check"])))?;
    let findings = tidy::check_tree()?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    ensure!(findings.is_empty(), "{} findings in the tree", findings.len());
    let builds = pg::ensure(&pg::Options::default())?;
    step("lint", || {
        check(&mut cargo_with_postgres(
            &builds,
            &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"],
        ))
    })?;
    step("build the documentation", || {
        let mut command = cargo(&["doc", "--release", "--no-deps", "--document-private-items"]);
        check(command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))
    })
}

/// Formats and applies what clippy can fix.
pub fn fix() -> Result<()> {
    check(&mut cargo(&["fmt", "--all"]))?;
    let builds = pg::ensure(&pg::Options::default())?;
    check(&mut cargo_with_postgres(
        &builds,
        &["clippy", "--release", "--workspace", "--all-targets", "--fix", "--allow-dirty"],
    ))?;
    check(&mut cargo(&["fmt", "--all"]))
}
