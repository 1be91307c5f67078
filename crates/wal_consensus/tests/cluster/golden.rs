//! Scripts in `tests/consensus/*.txt`: a line that begins with `$ ` is a command, what follows is everything that came of
//! it. `NEON_REWRITE_GOLDEN=1` writes the outputs anew; read the difference before it is committed.
//!
//! ```text
//! safekeepers N               N safekeepers that are up and empty
//! sync                        a walproposer in sync mode, connected to everybody
//! compute                     a compute started where the last sync ended, with its walproposer, connected
//! walproposer C               a new walproposer for compute C, connected
//! kill P                      kills walproposer P
//! connect P SK                connects again
//! cut P SK KEEP               breaks a connection; the safekeeper still gets the first KEEP messages under way
//! write C WORDS...            compute C writes records of so many words
//! settle [except SK...]       delivers and flushes until nothing happens any more
//! deliver P SK                hands one message from P to SK
//! heartbeat P                 a second passes for P
//! evict P                     P forgets WAL that a quorum was sent
//! crash SK / restart SK       the process, and what was not synced, is lost; starts again
//! state                       what everybody holds
//! ```

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use wal_consensus::proposer::ProposerInput;

use crate::rng::Rng;
use crate::world::{Cluster, Outcome};

fn scripts() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/consensus");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn number(words: &[&str], index: usize) -> usize {
    words[index].parse().unwrap_or_else(|_| panic!("no number in {words:?}"))
}

fn connect_all(cluster: &mut Cluster, proposer: usize) -> Outcome {
    (0..cluster.safekeepers.len())
        .filter(|sk| cluster.safekeepers[*sk].acceptor.is_some())
        .collect::<Vec<_>>()
        .into_iter()
        .try_for_each(|sk| cluster.connect(proposer, sk))
}

fn conn_of(cluster: &Cluster, proposer: usize, sk: usize) -> u64 {
    let mut conns = cluster.conns.iter();
    let found = conns.find(|(_, conn)| conn.proposer == proposer && conn.sk == sk);
    *found.unwrap_or_else(|| panic!("p{proposer} has no connection to sk{}", sk + 1)).0
}

fn tell_wal(cluster: &mut Cluster, compute: usize) -> Outcome {
    let ids: Vec<usize> = cluster.walproposers.keys().copied().collect();
    for id in ids {
        let serves = cluster.walproposers.get(&id).is_some_and(|w| w.compute == Some(compute));
        if let Some(input) = cluster.wal_held(id).filter(|_| serves) {
            cluster.step_proposer(id, input)?;
        }
    }
    Ok(())
}

fn state(cluster: &mut Cluster) {
    let mut lines = Vec::new();
    for (index, sk) in cluster.safekeepers.iter().enumerate() {
        let Some(acceptor) = &sk.acceptor else {
            lines.push(format!("sk{}: down", index + 1));
            continue;
        };
        let (ladder, state) = (acceptor.ladder(), acceptor.state());
        lines.push(format!(
            "sk{}: term {}, commit {}, flush {}, write {}, history {}",
            index + 1,
            state.term,
            ladder.commit_lsn,
            ladder.flush_lsn,
            ladder.write_lsn,
            state.term_history
        ));
    }
    for compute in &cluster.computes {
        let alive = if compute.alive { "alive" } else { "dead" };
        let (acked, end) = (compute.acked_lsn, compute.end_lsn());
        lines.push(format!("compute {}: {alive}, acknowledged {acked} of {end}", compute.id));
    }
    cluster.trace.extend(lines);
}

fn command(cluster: &mut Cluster, line: &str) -> Outcome {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[0] {
        "safekeepers" => *cluster = Cluster::new(number(&words, 1)),
        "sync" => {
            let id = cluster.start_sync();
            connect_all(cluster, id)?;
        }
        "compute" => {
            let compute = cluster.start_compute(cluster.synced.unwrap());
            let id = cluster.start_walproposer(compute);
            connect_all(cluster, id)?;
        }
        "walproposer" => {
            let id = cluster.start_walproposer(number(&words, 1) - 1);
            connect_all(cluster, id)?;
        }
        "kill" => cluster.kill(number(&words, 1)),
        "connect" => cluster.connect(number(&words, 1), number(&words, 2) - 1)?,
        "cut" => {
            let id = conn_of(cluster, number(&words, 1), number(&words, 2) - 1);
            cluster.break_conn(id, number(&words, 3))?;
        }
        "write" => {
            let compute = number(&words, 1) - 1;
            for index in 2..words.len() {
                let length = u8::try_from(number(&words, index)).unwrap();
                cluster.computes[compute].write_record(length);
            }
            tell_wal(cluster, compute)?;
        }
        "settle" => {
            let deaf: Vec<usize> = (2..words.len()).map(|i| number(&words, i) - 1).collect();
            cluster.settle(&deaf)?;
        }
        "deliver" => {
            let id = conn_of(cluster, number(&words, 1), number(&words, 2) - 1);
            cluster.deliver_to_sk(id, None)?;
        }
        "heartbeat" => cluster.step_proposer(number(&words, 1), ProposerInput::Heartbeat)?,
        "evict" => {
            let walproposer = cluster.walproposers.get_mut(&number(&words, 1)).unwrap();
            walproposer.held_from = walproposer.proposer.evictable_lsn();
            let input = cluster.wal_held(number(&words, 1)).unwrap();
            cluster.step_proposer(number(&words, 1), input)?;
        }
        // How much of what was not synced survives is drawn with seed 0.
        "crash" => cluster.crash_sk(number(&words, 1) - 1, &mut Rng::new(0)),
        "restart" => cluster.restart_sk(number(&words, 1) - 1)?,
        "state" => state(cluster),
        other => panic!("unknown command {other}"),
    }
    Ok(())
}

/// Runs the commands of a script and returns the script with the outputs that came of them.
fn play(script: &str) -> String {
    let mut cluster = Cluster::new(1);
    let mut output = String::new();
    for line in script.lines() {
        if let Some(text) = line.strip_prefix("$ ") {
            writeln!(output, "{line}").unwrap();
            let result = command(&mut cluster, text);
            for event in cluster.trace.drain(..) {
                writeln!(output, "{event}").unwrap();
            }
            if let Err(problem) = result {
                writeln!(output, "PROBLEM: {problem}").unwrap();
            }
        } else if line.starts_with('#') || line.is_empty() {
            writeln!(output, "{line}").unwrap();
        }
    }
    output
}

#[test]
fn scripts_give_what_they_gave() {
    let rewrite = std::env::var_os("NEON_REWRITE_GOLDEN").is_some();
    let paths = scripts();
    assert!(!paths.is_empty());
    for path in paths {
        let script = fs::read_to_string(&path).unwrap();
        let output = play(&script);
        assert!(!output.contains("PROBLEM"), "{}:\n{output}", path.display());
        if rewrite {
            fs::write(&path, output).unwrap();
        } else {
            assert_eq!(output, script, "{} gives another trace", path.display());
        }
    }
}
