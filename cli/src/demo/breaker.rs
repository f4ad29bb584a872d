//! Does what the plan of `demo --chaos` says, on the demo's main thread.
//!
//! Nothing here waits: a second member that leaves is looked after until it has,
//! while the demo goes on.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use keepup::testing::EmbeddedCluster;
use keepup::{Event, EventKind, Handle, Model, PartitionView, TopicPartition, Workers};
use rustix::process::{Pid, Signal, kill_process};

use super::TOPIC;
use super::chaos::{Act, Done, FOR, Plan, Traps};
use super::summary::Chaos;
use crate::exit::Failure;

/// Lines of the group that may wait for the screen, which looks ten times a
/// second. What does not fit is in the log (`-v`).
const LINES: usize = 64;

/// What the group says of what happens to it, for the screen.
pub(super) fn lines() -> (
    impl FnMut(&Event) + Clone + Send + 'static,
    Receiver<String>,
) {
    let (lines, said): (Sender<String>, _) = crossbeam_channel::bounded(LINES);
    let tell = move |event: &Event| {
        let line = match &event.kind {
            EventKind::Warning { message } => message.clone(),
            EventKind::WorkerRestarted { .. } => event.to_string(),
            _ => return,
        };
        let _ = lines.try_send(line);
    };
    (tell, said)
}

/// Breaks things, and mends what has to be.
pub(super) struct Breaker<'a> {
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) traps: Arc<Traps>,
    pub(super) said: Receiver<String>,
    pub(super) cluster: &'a EmbeddedCluster,
    pub(super) workers: Workers,
    pub(super) model: Model,
    /// Worker processes that are stopped, and when they go on.
    pub(super) stopped: Vec<(Duration, Pid)>,
    /// Starts a second member.
    pub(super) invite: Box<dyn Fn() -> Result<Handle, keepup::Error> + 'a>,
    pub(super) done: Done,
    pub(super) guests: Vec<Handle>,
    pub(super) leaving: Vec<Handle>,
    /// Workers of second members that were replaced.
    pub(super) restarts: u32,
}

impl Breaker<'_> {
    /// Does what is due; gives what there is to say of it.
    pub(super) fn turn(
        &mut self,
        elapsed: Duration,
        host: &Handle,
    ) -> Result<Vec<String>, Failure> {
        self.see_off()?;
        let mut lines: Vec<String> = self.said.try_iter().collect();
        self.wake(Some(elapsed));
        while let Some(act) = self.plan.due(elapsed) {
            lines.extend(self.perform(act, elapsed, host)?);
        }
        Ok(lines)
    }

    /// Has stopped workers go on whose time has come; all of them where there is no
    /// time.
    fn wake(&mut self, elapsed: Option<Duration>) {
        let is_due = |(until, _): &mut (Duration, Pid)| elapsed.is_none_or(|now| *until <= now);
        for (_, worker) in self.stopped.extract_if(.., is_due) {
            // One that was killed meanwhile needs nothing.
            let _ = kill_process(worker, Signal::CONT);
        }
    }

    /// Breaks the process of the worker that has a partition; what there is to say.
    fn break_process(&mut self, act: Act, elapsed: Duration, host: &Handle) -> Option<String> {
        let (of, signal) = match act {
            Act::Hang(of) => (of, Signal::STOP),
            Act::Panic(of) | Act::Fail(of) => (of, Signal::KILL),
            _ => return None,
        };
        let now = host.lag();
        let has_it = now
            .partitions
            .iter()
            .find(|lag| lag.partition == topic_partition(of))?;
        let index = has_it.worker?;
        let worker = now.workers.iter().find(|worker| worker.worker == index)?;
        let pid = Pid::from_raw(i32::try_from(worker.pid?).ok()?)?;
        kill_process(pid, signal).ok()?;
        if signal == Signal::STOP {
            self.stopped.push((elapsed + FOR, pid));
            self.done.stops += 1;
            let seconds = FOR.as_secs_f64();
            return Some(format!(
                "chaos: worker {index}, which has partition {of}, is stopped for {seconds:.1} s"
            ));
        }
        self.done.kills += 1;
        Some(format!(
            "chaos: worker {index}, which has partition {of}, is killed (kill -9)"
        ))
    }

    /// The load is over: mends what is broken still.
    pub(super) fn mend(&mut self, host: &Handle) -> Result<Vec<String>, Failure> {
        let mut lines = Vec::new();
        self.wake(None);
        for act in self.plan.ends() {
            lines.extend(self.perform(act, Duration::ZERO, host)?);
        }
        Ok(lines)
    }

    /// What second members have.
    pub(super) fn views(&self) -> impl Iterator<Item = PartitionView> {
        let members = self.guests.iter().chain(&self.leaving);
        members.flat_map(Handle::partitions)
    }

    /// Does one thing; what there is to say, where it was done.
    fn perform(
        &mut self,
        act: Act,
        elapsed: Duration,
        host: &Handle,
    ) -> Result<Option<String>, Failure> {
        if self.model == Model::Processes
            && matches!(act, Act::Panic(_) | Act::Fail(_) | Act::Hang(_))
        {
            return Ok(self.break_process(act, elapsed, host));
        }
        let members = || std::iter::once(host).chain(&self.guests);
        let is_done = match act {
            Act::Panic(_) | Act::Fail(_) | Act::Hang(_) => self.traps.set(act),
            Act::Pause(partition) => {
                let partition = [topic_partition(partition)];
                // Between two members it is nobody's to pause.
                members().any(|member| member.pause(&partition).is_ok())
            }
            Act::Resume(partition) => {
                let partition = [topic_partition(partition)];
                // One that moved since goes on already.
                members().any(|member| member.resume(&partition).is_ok())
            }
            Act::FewerWorkers => host.scale(Workers::Fixed(1)).is_ok(),
            Act::AllWorkers => host.scale(self.workers).is_ok(),
            Act::Join => {
                let guest = (self.invite)()?;
                self.guests.push(guest);
                true
            }
            Act::Leave => {
                for guest in self.guests.drain(..) {
                    guest.stop();
                    self.leaving.push(guest);
                }
                true
            }
            Act::BrokerAway => self.reach(false)?,
            Act::BrokerBack => self.reach(true)?,
        };
        if is_done {
            self.done.count(act);
        }
        Ok(is_done.then(|| format!("chaos: {act}")))
    }

    fn reach(&self, reachable: bool) -> Result<bool, Failure> {
        self.cluster.set_reachable(reachable)?;
        Ok(true)
    }

    /// Takes the reports of those who have left.
    fn see_off(&mut self) -> Result<(), Failure> {
        for guest in std::mem::take(&mut self.leaving) {
            if !guest.has_ended() {
                self.leaving.push(guest);
                continue;
            }
            self.take_leave(guest)?;
        }
        Ok(())
    }

    fn take_leave(&mut self, guest: Handle) -> Result<(), Failure> {
        let report = guest.wait();
        self.restarts += super::restarts(&report);
        if report.reason.is_failure() {
            let reason = &report.reason;
            return Err(Failure::Demo(format!("the second member ended: {reason}")));
        }
        Ok(())
    }

    /// Ends whatever is left of it; what was done.
    pub(super) fn conclude(mut self) -> Result<(Chaos, u32), Failure> {
        for guest in self
            .guests
            .drain(..)
            .chain(self.leaving.drain(..))
            .collect::<Vec<_>>()
        {
            guest.stop();
            self.take_leave(guest)?;
        }
        let chaos = Chaos {
            seed: self.seed,
            done: self.traps.done(self.done),
        };
        Ok((chaos, self.restarts))
    }
}

fn topic_partition(number: u32) -> TopicPartition {
    TopicPartition::new(TOPIC, number.cast_signed())
}
