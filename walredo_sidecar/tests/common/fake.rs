//! An installation of shell scripts, to see what the host does with a child of any behaviour.

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
            test_programs::write_program(&bin.join(name), text).unwrap();
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
