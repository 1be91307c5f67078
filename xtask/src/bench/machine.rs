//! The machine that is measured on: what else runs on it, and which of its processors ours and the reference get.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Processes that run or wait for the disk, on average, above which nothing is measured. An idle machine stays below a
/// tenth; one compiler is 1.
pub const LOAD_LIMIT: f64 = 0.5;
const SAMPLES: u32 = 60;
const SAMPLE_EVERY: Duration = Duration::from_millis(50);

/// How busy the machine is without us, over three seconds: what the load average averages, but not over the minutes in
/// which this very command compiled.
pub fn load() -> Result<f64> {
    let mut sum = 0;
    for _ in 0..SAMPLES {
        sleep(SAMPLE_EVERY);
        let stat = fs::read_to_string("/proc/stat")?;
        // One is this process, which reads the file.
        sum +=
            busy_processes(&stat).context("/proc/stat does not count processes")?.saturating_sub(1);
    }
    Ok(f64::from(sum) / f64::from(SAMPLES))
}

fn busy_processes(stat: &str) -> Option<u32> {
    let count = |name: &str| -> Option<u32> {
        stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    Some(count("procs_running ")? + count("procs_blocked ")?)
}

/// Refuses to go on beside other work, unless that is `allowed`.
pub fn check_load(load: f64, allowed: bool) -> Result<()> {
    ensure!(
        allowed || load <= LOAD_LIMIT,
        "the machine is busy: {load:.1} processes run or wait for the disk, and figures taken above {LOAD_LIMIT} say \
         little; wait, or measure all the same with --busy, which the result will tell"
    );
    if load > LOAD_LIMIT {
        eprintln!("the machine is busy (load {load:.1}): take these figures for what they are");
    }
    Ok(())
}

/// The one-minute load average.
pub fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("could not read the load average")?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().with_context(|| format!("no load average: {text}"))
}

/// Runs `work` with this thread, and all processes it starts meanwhile, on these processors only.
pub fn pinned<T>(cpus: &[usize], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread)?;
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(this_thread, &set)
        .with_context(|| format!("this machine has no processors {cpus:?}"))?;
    let result = work();
    sched_setaffinity(this_thread, &before)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_refused_unless_told_otherwise() {
        assert!(check_load(0.1, false).is_ok());
        let refusal = check_load(2.0, false).unwrap_err().to_string();
        assert!(refusal.contains("busy") && refusal.contains("--busy"), "{refusal}");
        assert!(check_load(2.0, true).is_ok());
    }

    #[test]
    fn processes_that_run_and_that_wait_are_counted() {
        let stat = "cpu  1 2 3\nprocs_running 3\nprocs_blocked 2\nsoftirq 1\n";
        assert_eq!(busy_processes(stat), Some(5));
        assert_eq!(busy_processes("cpu 1"), None);
    }

    #[test]
    fn children_run_where_their_parent_was_pinned() {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
        let status = pinned(&[cpu], || {
            Ok(std::process::Command::new("cat").arg("/proc/self/status").output()?)
        });
        let status = String::from_utf8(status.unwrap().stdout).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        assert_eq!(line.unwrap().trim(), cpu.to_string());
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), allowed);
        assert!(pinned(&[], || Ok(())).is_err());
    }
}
