//! A short campaign of faults: each kind that there is for a single safekeeper. `cargo xtask test` also runs one with
//! three; `cargo xtask chaos` runs them for as long as one likes.

use std::path::Path;

use anyhow::{Result, ensure};
use system_tests::Place;
use system_tests::chaos::{self, Limit, Options};

#[test]
fn ten_faults_lose_nothing_with_one_safekeeper() -> Result<()> {
    let seed = rand::random();
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
    let options = Options { safekeepers: 1, seed, limit: Limit::Faults(10), logs };
    let report = chaos::run(Place::from_env()?, &options)?;
    println!("{report}");
    ensure!(report.failed().is_empty(), "failed with seed {seed}: {}", report.failed().join(", "));
    Ok(())
}
