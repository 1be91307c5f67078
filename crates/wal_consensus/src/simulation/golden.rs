//! Scripts in `tests/scripts/*.txt`: a line that begins with `$ ` is a command, what follows is everything that came of
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
//! members N M                 like `safekeepers N`, with a membership configuration, and M more safekeepers without
//!                             the timeline
//! change ID... / abort        begins a change to these members / takes the one under way back
//! step N / finish             does the N-th thing that is due / all of them, one by one, and settles
//! connect-all P               connects P to everybody again
//! ```

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::controller::{Controller, Fate};
use super::node::{Crash, Trouble};
use super::rng::Rng;
use super::world::{Cluster, Outcome, member};
use crate::change::ChangeGoal;
use crate::proposer::ProposerInput;

fn scripts() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn number(words: &[&str], index: usize) -> usize {
    words[index].parse().unwrap_or_else(|_| panic!("no number in {words:?}"))
}

fn connect_all(cluster: &mut Cluster, proposer: usize) -> Outcome {
    (0..cluster.nodes.len())
        .filter(|sk| {
            cluster.nodes[*sk].is_up()
                && cluster.knows(proposer, *sk)
                && !cluster.is_connected(proposer, *sk)
        })
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
    for (index, node) in cluster.nodes.iter().enumerate() {
        let Some(acceptor) = &node.acceptor else {
            let why = if node.disk.is_some() { "down" } else { "has no timeline" };
            lines.push(format!("sk{}: {why}", index + 1));
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
    lines.into_iter().for_each(|line| cluster.say(|| line));
}

/// Commands about members; `false` when it is another one.
fn member_command(
    cluster: &mut Cluster,
    controller: &mut Controller,
    words: &[&str],
) -> Result<bool, String> {
    match words[0] {
        "change" => {
            let ids = (1..words.len()).map(|index| member(number(words, index) as u64));
            controller.begin(cluster, ChangeGoal::Members(ids.collect()))?;
        }
        "abort" => controller.begin(cluster, ChangeGoal::Abort)?,
        "step" => controller.act(cluster, number(words, 1), Fate::Answered)?,
        "finish" => {
            for _ in 0..100 {
                if controller.is_busy() {
                    controller.act(cluster, 0, Fate::Answered)?;
                    cluster.settle(&[])?;
                }
            }
        }
        "connect-all" => connect_all(cluster, number(words, 1))?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn command(cluster: &mut Cluster, controller: &mut Controller, line: &str) -> Outcome {
    let words: Vec<&str> = line.split_whitespace().collect();
    if member_command(cluster, controller, &words)? {
        return Ok(());
    }
    match words[0] {
        "safekeepers" => *cluster = Cluster::new(number(&words, 1), 0, false),
        "members" => *cluster = Cluster::new(number(&words, 1), number(&words, 2), true),
        "sync" => {
            let id = cluster.start_sync(cluster.store.mconf.clone());
            connect_all(cluster, id)?;
        }
        "compute" => {
            let compute = cluster.start_compute(cluster.synced.unwrap());
            let id = cluster.start_walproposer(compute, cluster.store.mconf.clone());
            connect_all(cluster, id)?;
        }
        "walproposer" => {
            let mconf = cluster.store.mconf.clone();
            let id = cluster.start_walproposer(number(&words, 1) - 1, mconf);
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
            cluster.deliver_to_sk(id, Trouble::default())?;
        }
        "heartbeat" => cluster.step_proposer(number(&words, 1), ProposerInput::Heartbeat)?,
        "evict" => {
            let walproposer = cluster.walproposers.get_mut(&number(&words, 1)).unwrap();
            walproposer.held_from = walproposer.proposer.evictable_lsn();
            let input = cluster.wal_held(number(&words, 1)).unwrap();
            cluster.step_proposer(number(&words, 1), input)?;
        }
        // How much of what was not synced survives is drawn with seed 0.
        "crash" => cluster.crash_sk(number(&words, 1) - 1, Crash::PowerCut, &mut Rng::new(0)),
        "restart" => cluster.restart_sk(number(&words, 1) - 1)?,
        "state" => state(cluster),
        other => panic!("unknown command {other}"),
    }
    Ok(())
}

/// Runs the commands of a script and returns the script with the outputs that came of them.
fn play(script: &str) -> String {
    let mut cluster = Cluster::new(1, 0, false);
    let mut controller = Controller::default();
    let mut output = String::new();
    for line in script.lines() {
        if let Some(text) = line.strip_prefix("$ ") {
            writeln!(output, "{line}").unwrap();
            let result = command(&mut cluster, &mut controller, text);
            for event in cluster.trace.take() {
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

/// The first place where two texts part, with what came before.
fn difference(expected: &str, got: &str) -> String {
    let (expected, got): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), got.lines().collect());
    let pairs = expected.iter().zip(&got);
    let same = pairs.take_while(|(expected, got)| expected == got).count();
    let mut text = format!("line {}\n", same + 1);
    for line in expected.iter().take(same).skip(same.saturating_sub(6)) {
        writeln!(text, "  {line}").unwrap();
    }
    for (sign, lines) in [('-', &expected), ('+', &got)] {
        for line in lines.iter().skip(same).take(6) {
            writeln!(text, "{sign} {line}").unwrap();
        }
    }
    text
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
            assert!(
                output == script,
                "{} gives another trace:\n{}",
                path.display(),
                difference(&script, &output)
            );
        }
    }
}
