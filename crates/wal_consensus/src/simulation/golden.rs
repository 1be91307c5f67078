//! Scripts in `tests/scripts/*.txt`: a line that begins with `$ ` is a command, what follows is everything that came of
//! it. `NEON_REWRITE_GOLDEN=1` writes the outputs anew; read the difference before it is committed.
//!
//! ```text
//! safekeepers N               N safekeepers that are up and empty
//! sync                        a walproposer in sync mode, connected to everybody
//! compute                     a compute started where the last sync ended, or the timeline begins, with its walproposer,
//!                             connected
//! walproposer C               a new walproposer for compute C, connected
//! kill P [lost]               kills walproposer P; what it sent is still under way, or lost
//! connect P SK                connects again
//! cut P SK KEEP               breaks a connection; the safekeeper still gets the first KEEP messages under way
//! write C WORDS[xN]...        compute C writes records (N of them) of so many words
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
//! quietly COMMAND             COMMAND, and nothing of what came of it
//! hear P SK                   hands one message from SK to P
//! ask P SK                    one message from P to SK, and one back
//! lose P SK / double P SK     the next message under way from P to SK is lost / comes twice
//! flush SK                    SK flushes
//! save SK                     a good moment for SK to save what may be saved late
//! die P SK N                  hands one message to SK, whose process dies after N of the commands that follow from it
//! lose-disk SK                the process is gone, and the disk with it
//! switch SK G ID... [| ID...] asks SK to switch to this configuration of generation G
//! report SK FLUSH SYNCED      SK's runtime says that so much is durable, true or not
//! forge P SK vote TERM        puts a message that P never sent behind those under way to SK
//! forge P SK elected TERM START TERM@LSN...
//! forge P SK append TERM BEGIN END COMMIT
//! ```

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use pg_types::{Generation, Lsn, Term};

use super::controller::{Controller, Fate};
use super::node::{Crash, Trouble};
use super::rng::Rng;
use super::show;
use super::wal::START;
use super::world::{Cluster, Delivered, Outcome, member};
use crate::acceptor::AcceptorInput;
use crate::change::ChangeGoal;
use crate::membership::{Member, MembershipConf};
use crate::message::{AppendHeader, AppendRequest, ProposerElected, ProposerMessage, VoteRequest};
use crate::proposer::ProposerInput;
use crate::term_history::{TermHistory, TermLsn};

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

fn lsn(word: &str) -> Lsn {
    word.parse().unwrap()
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

fn kill(cluster: &mut Cluster, proposer: usize, lost: bool) {
    cluster.kill(proposer);
    let conns = cluster.conns.values_mut().filter(|conn| lost && conn.proposer == proposer);
    conns.for_each(|conn| conn.to_sk.clear());
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

/// The message that the words behind `forge P SK` describe.
fn forged(generation: Generation, words: &[&str]) -> ProposerMessage {
    let term = Term(number(words, 1) as u64);
    match words[0] {
        "vote" => ProposerMessage::VoteRequest(VoteRequest { generation, term }),
        "elected" => {
            let entry = |word: &&str| {
                let (term, at) = word.split_once('@').unwrap();
                TermLsn { term: Term(term.parse().unwrap()), lsn: lsn(at) }
            };
            ProposerMessage::Elected(ProposerElected {
                generation,
                term,
                start_streaming_at: lsn(words[2]),
                term_history: TermHistory::new(words[3..].iter().map(entry).collect()).unwrap(),
            })
        }
        "append" => {
            let (begin_lsn, end_lsn) = (lsn(words[2]), lsn(words[3]));
            let commit_lsn = lsn(words[4]);
            let truncate_lsn = Lsn::INVALID;
            let header =
                AppendHeader { generation, term, begin_lsn, end_lsn, commit_lsn, truncate_lsn };
            let wal = vec![0; usize::try_from(header.wal_bytes()).unwrap()].into();
            ProposerMessage::Append(AppendRequest { header, wal })
        }
        other => panic!("no message {other}"),
    }
}

/// `G ID... [| ID...]`
fn configuration(words: &[&str]) -> MembershipConf {
    let set = |words: &[&str]| -> Vec<Member> {
        (0..words.len()).map(|index| member(number(words, index) as u64)).collect()
    };
    let mut sets = words[1..].split(|word| *word == "|");
    MembershipConf {
        generation: Generation(words[0].parse().unwrap()),
        members: set(sets.next().unwrap()),
        new_members: sets.next().map(set),
    }
}

/// Commands about single messages, and about what goes wrong; `false` when it is another one.
fn trouble_command(cluster: &mut Cluster, words: &[&str]) -> Result<bool, String> {
    let (name, args) = (words[0], &words[1..]);
    if ["hear", "ask", "lose", "double", "die", "forge"].contains(&name) {
        let (proposer, sk) = (number(args, 0), number(args, 1) - 1);
        let id = conn_of(cluster, proposer, sk);
        let under_way = &mut cluster.conns.get_mut(&id).unwrap().to_sk;
        match name {
            "hear" => {
                cluster.deliver_to_proposer(id)?;
            }
            "ask" => {
                cluster.deliver_to_sk(id, Trouble::default())?;
                cluster.deliver_to_proposer(id)?;
            }
            "lose" => {
                let lost = under_way.pop_front().unwrap();
                let lost = show::proposer_message(&lost);
                cluster.say(|| format!("c{id} loses: {lost}"));
            }
            "double" => {
                let first = under_way.front().unwrap().clone();
                under_way.push_front(first);
            }
            "die" => {
                let crash_after = Some(number(args, 2));
                let trouble = Trouble { crash_after, ..Trouble::default() };
                if cluster.deliver_to_sk(id, trouble)? != Delivered::Deadly {
                    return Err("nothing to die of".to_owned());
                }
                cluster.crash_sk(sk, Crash::PowerCut, &mut Rng::new(0));
            }
            _ => {
                let generation = cluster.walproposers[&proposer].proposer.mconf().generation;
                under_way.push_back(forged(generation, &args[2..]));
            }
        }
        return Ok(true);
    }
    if !["flush", "save", "lose-disk", "switch", "report"].contains(&name) {
        return Ok(false);
    }
    let sk = number(args, 0) - 1;
    match name {
        "flush" => {
            cluster.flush(sk, Trouble::default())?;
        }
        "save" => cluster.save_sk(sk)?,
        "lose-disk" => {
            cluster.crash_sk(sk, Crash::PowerCut, &mut Rng::new(0));
            cluster.nodes[sk].disk = None;
            cluster.say(|| format!("sk{} has lost its disk", sk + 1));
        }
        "switch" => {
            let mconf = configuration(&args[1..]);
            match cluster.nodes[sk].switch(&mconf, &mut cluster.trace)? {
                Ok(out) => cluster.take_out(sk, out)?,
                Err(refusal) => cluster.say(|| format!("  sk{} refuses: {refusal}", sk + 1)),
            }
        }
        _ => {
            // Not carried out: to the rest of the simulation a timeline out of service is an error.
            let (flush_lsn, synced_lsn) = (lsn(args[1]), lsn(args[2]));
            let acceptor = cluster.nodes[sk].acceptor.as_mut().unwrap();
            for command in acceptor.step(AcceptorInput::Flushed { flush_lsn, synced_lsn }) {
                cluster.say(|| format!("  sk{}: {}", sk + 1, show::command(&command)));
            }
        }
    }
    Ok(true)
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
    if member_command(cluster, controller, &words)? || trouble_command(cluster, &words)? {
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
            let compute = cluster.start_compute(cluster.synced.unwrap_or(START));
            let id = cluster.start_walproposer(compute, cluster.store.mconf.clone());
            connect_all(cluster, id)?;
        }
        "walproposer" => {
            let mconf = cluster.store.mconf.clone();
            let id = cluster.start_walproposer(number(&words, 1) - 1, mconf);
            connect_all(cluster, id)?;
        }
        "kill" => kill(cluster, number(&words, 1), words.get(2) == Some(&"lost")),
        "connect" => {
            let (proposer, sk) = (number(&words, 1), number(&words, 2) - 1);
            if cluster.is_connected(proposer, sk) {
                return Err("has not heard of the end of its connection".to_owned());
            }
            cluster.connect(proposer, sk)?;
        }
        "cut" => {
            let id = conn_of(cluster, number(&words, 1), number(&words, 2) - 1);
            cluster.break_conn(id, number(&words, 3))?;
        }
        "write" => {
            let compute = number(&words, 1) - 1;
            for word in &words[2..] {
                let (length, count) = word.split_once('x').unwrap_or((*word, "1"));
                for _ in 0..count.parse().unwrap() {
                    cluster.computes[compute].write_record(length.parse().unwrap());
                }
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
            let (text, quiet) =
                text.strip_prefix("quietly ").map_or((text, false), |text| (text, true));
            let result = command(&mut cluster, &mut controller, text)
                .and_then(|()| cluster.checker.inspect(&mut cluster.nodes));
            cluster.forget_dead_conns();
            for event in cluster.trace.take().into_iter().filter(|_| !quiet) {
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
