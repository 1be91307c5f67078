//! `cargo xtask pg`: PostgreSQL from the distribution's source package, patched and unpatched.
//!
//! Both are kept in the [cache directory](pg_launch::cache_dir), outside `target/`, so that a fresh clone finds
//! them. A build is named by what went into it: the source, the patches, how it was configured.
//!
//! ```text
//! CACHE/pg/lock                        held while something below changes
//! CACHE/pg/source/current              which source is used: sha256, version, file name
//! CACHE/pg/source/FILE                 the tarball
//! CACHE/pg/download                    where apt works; left behind by a failed run
//! CACHE/pg/patched-17.11-KEY/source    unpacked, patches applied
//!                           /build     built out of the source tree, with the regression programs
//!                           /install   what `make install-world-bin` installs
//!                           /*.log     output of each step
//!                           /finished  written last; a tree without it is built anew
//! CACHE/pg/stock-17.11-KEY/…           the same without patches
//! ```

mod apt;
mod patches;
pub mod prerequisites;
mod progress;
mod source;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::root;
use patches::Series;
use tree::Tree;

/// Major version of the PostgreSQL that is built; also the name of the patch folder (`v17`).
pub const MAJOR: u32 = 17;

/// Options of the command.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// Tarball of PostgreSQL 17's source, 17.11 or later, instead of the distribution's source package.
    #[arg(long, value_name = "TARBALL")]
    pub pg_source: Option<PathBuf>,
    /// Print where the builds are, as lines NAME=PATH.
    #[arg(long)]
    pub print_paths: bool,
}

/// The two builds.
#[derive(Debug, Clone)]
pub struct PgBuilds {
    /// With the patches of `postgres_patches`.
    pub patched: PgInstallDirs,
    /// Without, from the same source and configured alike.
    pub stock: PgInstallDirs,
}

/// Folders of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgInstallDirs {
    /// Root of the installation: `bin`, `lib`, `share`, `include` are below it.
    pub install: PathBuf,
    /// Root of the build tree, where `src/test/regress/pg_regress` is.
    pub build: PathBuf,
    /// Root of the source tree, where the inputs of the regression suites are.
    pub source: PathBuf,
}

/// Makes both builds if need be and says where they are.
pub fn run(options: &Options) -> Result<()> {
    let builds = ensure(options)?;
    pg_launch::ensure_system_user()?;
    if options.print_paths {
        for (name, dirs) in [("PATCHED", &builds.patched), ("STOCK", &builds.stock)] {
            println!("NEON_PG_{name}_INSTALL={}", dirs.install.display());
            println!("NEON_PG_{name}_BUILD={}", dirs.build.display());
            println!("NEON_PG_{name}_SOURCE={}", dirs.source.display());
        }
    } else {
        eprintln!("PostgreSQL with patches: {}", builds.patched.install.display());
        eprintln!("PostgreSQL without:      {}", builds.stock.install.display());
    }
    Ok(())
}

/// Finds or makes both builds. Returns at once when they are there and up to date.
pub fn ensure(options: &Options) -> Result<PgBuilds> {
    prerequisites::ensure(prerequisites::FOR_EXTENSIONS)?;
    let cache = pg_launch::cache_dir().join("pg");
    let series = Series::read(&patches_dir())?;
    if options.pg_source.is_none()
        && let Some(source) = source::current(&cache)?
    {
        let (patched, stock) = trees(&cache, &source, &series);
        if patched.is_finished() && stock.is_finished() {
            return Ok(builds(&patched, &stock));
        }
    }
    make(&cache, options, &series).with_context(|| format!("could not build PostgreSQL {MAJOR}"))
}

/// Downloads another source package of the distribution into `dir`; its upstream tarball.
pub fn download_package(dir: &Path, package: &str) -> Result<PathBuf> {
    apt::check()?;
    apt::download(dir, package)
}

/// The folder of the patch series.
fn patches_dir() -> PathBuf {
    root().join("postgres_patches").join(format!("v{MAJOR}"))
}

fn make(cache: &Path, options: &Options, series: &Series) -> Result<PgBuilds> {
    let _umask = tree::OpenUmask::set();
    std::fs::create_dir_all(cache)
        .with_context(|| format!("could not create {}", cache.display()))?;
    let _lock = tree::lock(cache)?;
    prerequisites::ensure(prerequisites::FOR_POSTGRES)?;
    let source = source::find(cache, options.pg_source.as_deref())?;
    let (patched, stock) = trees(cache, &source, series);
    patched.make(&source, series)?;
    stock.make(&source, &Series::default())?;
    tree::remove_old(cache, &[&patched, &stock])?;
    Ok(builds(&patched, &stock))
}

fn trees(cache: &Path, source: &source::Source, series: &Series) -> (Tree, Tree) {
    (
        Tree::new(cache, "patched", source, series),
        Tree::new(cache, "stock", source, &Series::default()),
    )
}

fn builds(patched: &Tree, stock: &Tree) -> PgBuilds {
    patched.note_use();
    stock.note_use();
    PgBuilds { patched: patched.dirs(), stock: stock.dirs() }
}
