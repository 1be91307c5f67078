//! Seeded schedules of a whole timeline with everything going wrong: messages that are lost, doubled and overtake each
//! other, connections that break with messages under way, safekeepers that die with unsynced WAL or between two commands,
//! torn sectors, full disks, failed syncs and saves, walproposers killed, computes replaced while the old ones live on,
//! members exchanged. Each schedule ends with a calm in which the newest compute must get everything committed, and the
//! change of members that is under way must end.

use super::controller::{Controller, Fate, resume};
use super::node::{Crash, Trouble};
use super::rng::Rng;
use super::trace::Trace;
use super::world::{Cluster, Delivered, Outcome, member};
use crate::change::ChangeGoal;
use crate::membership::MembershipConf;
use crate::proposer::ProposerInput;

const CALM_STEPS: usize = 6_000;
const COMPUTES_MAX: usize = 12;

/// Begins the description of a schedule in which nothing wrong was done, but nothing right either.
pub(super) const STUCK: &str = "no progress";

#[derive(Debug)]
pub(super) struct Schedule {
    rng: Rng,
    pub(super) cluster: Cluster,
    controller: Controller,
    faults: bool,
    steps: usize,
    /// Whether members change.
    changes: bool,
    /// Whether connections lose, double and reorder messages.
    bad_network: bool,
    /// For the test of the test: a crash may lose synced bytes too.
    pub(super) lying_disks: bool,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Schedule {
        let mut rng = Rng::new(seed);
        let founders = [1, 2, 3, 3, 3, 3, 4, 5][rng.below(8)];
        let changes = rng.below(10) < 6;
        let others = if changes { 1 + rng.below(3) } else { 0 };
        let named = changes && rng.one_in(2);
        let cluster = Cluster::new(founders, others, named);
        let steps = 300 + rng.below(900);
        let bad_network = rng.one_in(2);
        Schedule {
            rng,
            cluster,
            controller: Controller::default(),
            faults: true,
            steps,
            changes,
            bad_network,
            lying_disks: false,
        }
    }

    /// The same without words.
    pub(super) fn silent(seed: u64) -> Schedule {
        let mut schedule = Schedule::new(seed);
        schedule.cluster.trace = Trace::silent();
        schedule
    }

    pub(super) fn run(&mut self) -> Outcome {
        for _ in 0..self.steps {
            self.act()?;
            self.cluster.checker.inspect(&mut self.cluster.nodes)?;
        }
        self.faults = false;
        // What the network has lost is noticed: a connection that lost something does not live for ever.
        let ids: Vec<u64> = self.cluster.conns.keys().copied().collect();
        for id in ids {
            self.cluster.break_conn(id, 0)?;
        }
        for sk in 0..self.cluster.nodes.len() {
            self.cluster.nodes[sk].full = false;
            if self.cluster.nodes[sk].is_down() {
                self.cluster.restart_sk(sk)?;
            }
        }
        for _ in 0..CALM_STEPS {
            self.act()?;
            self.cluster.checker.inspect(&mut self.cluster.nodes)?;
            if self.is_done() {
                return Ok(());
            }
        }
        Err(format!("{STUCK}: the newest compute's WAL is not committed, or members not changed"))
    }

    fn is_done(&self) -> bool {
        let newest = self.cluster.computes.last();
        let stored = &self.cluster.store;
        newest.is_some_and(|compute| {
            compute.alive && !compute.wal.is_empty() && compute.acked_lsn == compute.end_lsn()
        }) && !self.controller.is_busy()
            && !stored.mconf.is_joint()
            && (stored.finished || stored.mconf.members.is_empty())
    }

    fn act(&mut self) -> Outcome {
        match self.rng.below(100) {
            0..56 => self.deliver(),
            56..68 => self.write(),
            68..76 => self.flush(),
            76..83 => self.reconnect(),
            83..87 => self.heartbeat(),
            87..89 => self.evict(),
            89..93 => self.start_processes(),
            93..97 if self.changes => self.change_members(),
            97..99 if self.faults => self.fault(),
            _ => self.deliver(),
        }
    }

    fn any_conn(&mut self) -> Option<u64> {
        let count = self.cluster.conns.len();
        self.cluster.conns.keys().nth(self.rng.below(count)).copied()
    }

    fn any_walproposer(&mut self) -> Option<usize> {
        let count = self.cluster.walproposers.len();
        self.cluster.walproposers.keys().nth(self.rng.below(count)).copied()
    }

    fn deliver(&mut self) -> Outcome {
        let Some(id) = self.any_conn() else { return Ok(()) };
        if self.faults && self.bad_network && self.rng.one_in(40) {
            self.disturb(id);
        }
        if self.rng.one_in(2) {
            let sk = self.cluster.conns[&id].sk;
            let trouble = self.trouble();
            let delivered = self.cluster.deliver_to_sk(id, trouble)?;
            if delivered == Delivered::Deadly {
                self.crash(sk);
            }
        } else {
            self.cluster.deliver_to_proposer(id)?;
        }
        self.cluster.forget_dead_conns();
        Ok(())
    }

    /// Now and then the process dies between two of the commands that a message leads to, or a file operation fails.
    fn trouble(&mut self) -> Trouble {
        if !self.faults || !self.rng.one_in(60) {
            return Trouble::default();
        }
        match self.rng.below(4) {
            0 => Trouble { failed_sync: true, ..Trouble::default() },
            1 => Trouble { failed_save: Some(self.rng.one_in(2)), ..Trouble::default() },
            _ => Trouble { crash_after: Some(self.rng.below(4)), ..Trouble::default() },
        }
    }

    fn crash(&mut self, sk: usize) {
        let crash = if self.rng.one_in(2) { Crash::Kill } else { Crash::PowerCut };
        self.cluster.crash_sk(sk, crash, &mut self.rng);
        if let Some(disk) = self.cluster.nodes[sk].disk.as_mut().filter(|_| self.lying_disks) {
            disk.wal.truncate(disk.wal.len() / 2);
            disk.synced = disk.synced.min(disk.wal.len());
            disk.durable_end = super::wal::whole_records(&disk.wal[..disk.synced], 0);
        }
    }

    /// Loses, doubles or exchanges messages of a connection.
    fn disturb(&mut self, id: u64) {
        let (what, rng) = (self.rng.below(3), &mut self.rng);
        let Some(conn) = self.cluster.conns.get_mut(&id) else { return };
        if rng.one_in(2) {
            disturb(&mut conn.to_sk, what, rng);
        } else {
            disturb(&mut conn.to_proposer, what, rng);
        }
    }

    fn write(&mut self) -> Outcome {
        let count = self.cluster.computes.len();
        if count == 0 {
            return Ok(());
        }
        let index = self.rng.below(count);
        let words = u8::try_from(2 + self.rng.below(12)).unwrap();
        let compute = &mut self.cluster.computes[index];
        let calm = !self.faults && !compute.wal.is_empty();
        if compute.alive && !calm {
            compute.write_record(words);
        }
        let ids: Vec<usize> = self.cluster.walproposers.keys().copied().collect();
        for id in ids {
            if let Some(input) = self.cluster.wal_held(id) {
                self.cluster.step_proposer(id, input)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Outcome {
        let sk = self.rng.below(self.cluster.nodes.len());
        let node = &self.cluster.nodes[sk];
        if node.is_up() && node.flush_wanted {
            let failed_sync = self.faults && self.rng.one_in(60);
            let trouble = Trouble { failed_sync, ..Trouble::default() };
            if !self.cluster.flush(sk, trouble)? {
                self.crash(sk);
            }
        }
        Ok(())
    }

    fn reconnect(&mut self) -> Outcome {
        let Some(id) = self.any_walproposer() else { return Ok(()) };
        let sk = self.rng.below(self.cluster.nodes.len());
        let can = self.cluster.nodes[sk].is_up() && self.cluster.knows(id, sk);
        if can && !self.cluster.is_connected(id, sk) {
            self.cluster.connect(id, sk)?;
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> Outcome {
        let Some(id) = self.any_walproposer() else { return Ok(()) };
        let tells_only = self.rng.one_in(2);
        let input = if tells_only { ProposerInput::TellCommit } else { ProposerInput::Heartbeat };
        self.cluster.step_proposer(id, input)
    }

    /// A walproposer forgets WAL that a quorum was sent.
    fn evict(&mut self) -> Outcome {
        let Some(id) = self.any_walproposer() else { return Ok(()) };
        let Some(walproposer) = self.cluster.walproposers.get_mut(&id) else { return Ok(()) };
        walproposer.held_from = walproposer.held_from.max(walproposer.proposer.evictable_lsn());
        match self.cluster.wal_held(id) {
            Some(input) => self.cluster.step_proposer(id, input),
            None => Ok(()),
        }
    }

    /// What a new walproposer is told of the members: the truth, or nothing.
    fn known_conf(&mut self) -> MembershipConf {
        let truth = self.rng.one_in(2) || !self.faults;
        if truth { self.cluster.store.mconf.clone() } else { MembershipConf::default() }
    }

    /// Starts what is missing: safekeepers, the newest compute's walproposer, a new compute.
    fn start_processes(&mut self) -> Outcome {
        for sk in 0..self.cluster.nodes.len() {
            if self.cluster.nodes[sk].is_down() && self.rng.one_in(2) {
                self.cluster.restart_sk(sk)?;
            }
        }
        if let Some(lsn) = self.cluster.synced.take() {
            let compute = self.cluster.start_compute(lsn);
            let mconf = self.known_conf();
            self.cluster.start_walproposer(compute, mconf);
            return Ok(());
        }
        let served =
            |compute: usize| self.cluster.walproposers.values().any(|w| w.compute == Some(compute));
        let syncing = self.cluster.walproposers.values().any(|w| w.compute.is_none());
        let newest = self.cluster.computes.len().checked_sub(1);
        let lonely = (0..self.cluster.computes.len()).rfind(|index| {
            let wanted = self.faults || Some(*index) == newest;
            wanted && self.cluster.computes[*index].alive && !served(*index)
        });
        let replace = self.faults && self.rng.one_in(6);
        let mconf = self.known_conf();
        if let Some(compute) = lonely.filter(|_| !replace) {
            self.cluster.start_walproposer(compute, mconf);
        } else if !syncing
            && self.cluster.computes.len() < COMPUTES_MAX
            && (replace || newest.is_none_or(|index| !self.cluster.computes[index].alive))
        {
            self.cluster.start_sync(mconf);
        } else if !self.faults {
            self.retire_the_lost();
        }
        Ok(())
    }

    /// A walproposer that was given addresses of safekeepers which have all left knows nobody who could tell it more:
    /// whoever starts computes gives it the members of the day.
    fn retire_the_lost(&mut self) {
        let lost = self.cluster.walproposers.iter().find(|(_, walproposer)| {
            walproposer.proposer.mconf().members.is_empty()
                && !self.cluster.store.mconf.members.is_empty()
        });
        if let Some(id) = lost.map(|(id, _)| *id)
            && self.rng.one_in(8)
        {
            self.cluster.kill(id);
        }
    }

    fn change_members(&mut self) -> Outcome {
        if self.rng.one_in(4) {
            return self.controller.act_late(&mut self.cluster, &mut self.rng);
        }
        if self.controller.is_busy() {
            if self.faults && self.rng.one_in(20) {
                self.cluster.say(|| "the controller dies".to_owned());
                self.controller.crash();
                return Ok(());
            }
            let fate = match self.rng.below(8) {
                0 if self.faults => Fate::AnswerLost,
                1 if self.faults => Fate::Late,
                _ => Fate::Answered,
            };
            let pick = self.rng.below(64);
            return self.controller.act(&mut self.cluster, pick, fate);
        }
        let back = self.rng.one_in(4);
        let goal = match resume(&self.cluster.store, back) {
            Some(goal) => goal,
            None if self.faults && self.rng.one_in(3) => self.new_goal(),
            None => return Ok(()),
        };
        self.controller.begin(&mut self.cluster, goal)
    }

    fn new_goal(&mut self) -> ChangeGoal {
        let count = self.cluster.nodes.len();
        let wanted = 1 + self.rng.below(count.min(4));
        let mut ids: Vec<u64> = (1..=count as u64).collect();
        while ids.len() > wanted {
            ids.swap_remove(self.rng.below(ids.len()));
        }
        ChangeGoal::Members(ids.into_iter().map(member).collect())
    }

    fn fault(&mut self) -> Outcome {
        match self.rng.below(7) {
            0 => {
                let sk = self.rng.below(self.cluster.nodes.len());
                if self.cluster.nodes[sk].disk.is_some() {
                    self.crash(sk);
                }
            }
            1 if self.rng.one_in(2) => {
                if let Some(id) = self.any_walproposer() {
                    self.cluster.say(|| format!("p{id} is killed"));
                    self.cluster.kill(id);
                }
            }
            2 => {
                let sk = self.rng.below(self.cluster.nodes.len());
                let full = self.rng.one_in(3);
                self.cluster.nodes[sk].full = full;
            }
            _ => {
                if let Some(id) = self.any_conn() {
                    let keep = self.rng.below(4);
                    self.cluster.break_conn(id, keep)?;
                }
            }
        }
        Ok(())
    }
}

fn disturb<T: Clone>(queue: &mut std::collections::VecDeque<T>, what: usize, rng: &mut Rng) {
    if queue.is_empty() {
        return;
    }
    let at = rng.below(queue.len());
    match what {
        0 => {
            queue.remove(at);
        }
        1 => queue.insert(at, queue[at].clone()),
        _ => queue.swap(at, 0),
    }
}
