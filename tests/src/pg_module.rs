//! Compiling the small libraries of `tests/modules` against a PostgreSQL.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pg_launch::PgInstall;

/// Compiles `tests/modules/NAME` in the existing folder `dir` with the headers of `install`, and returns the
/// path of the library. It can be loaded by that path; it is not installed.
pub fn compile(name: &str, install: &PgInstall, dir: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("modules").join(name);
    for entry in fs::read_dir(&source).with_context(|| format!("no module {}", source.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), dir.join(entry.file_name()))?;
    }
    let mut pg_config = std::ffi::OsString::from("PG_CONFIG=");
    pg_config.push(install.program("pg_config"));
    let output = Command::new("make").current_dir(dir).arg(pg_config).output()?;
    ensure!(
        output.status.success(),
        "could not compile {name}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let library = dir.join(format!("{name}.so"));
    ensure!(library.exists(), "the compiler did not make {}", library.display());
    Ok(library)
}
