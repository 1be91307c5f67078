//! An installation of shell scripts, to see what the host does with a child of any behaviour.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use pg_launch::PgInstall;

use super::open_dir;

/// Makes the files that a template needs.
pub const INITDB: &str = r#"
/bin/mkdir -p "$2/global"
for f in PG_VERSION postgresql.conf postgresql.auto.conf global/pg_control; do : > "$2/$f"; done
"#;

/// An installation; removed when dropped.
pub struct FakeInstall {
    dir: tempfile::TempDir,
}

impl FakeInstall {
    pub fn new(initdb: &str, postgres: &str) -> FakeInstall {
        let dir = open_dir();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for (name, text) in [("initdb", initdb), ("postgres", postgres)] {
            std::fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
        FakeInstall { dir }
    }

    pub fn install(&self) -> PgInstall {
        PgInstall::new(self.dir.path()).unwrap()
    }

    pub fn lib_dir(&self) -> PathBuf {
        self.dir.path().join("lib")
    }
}
