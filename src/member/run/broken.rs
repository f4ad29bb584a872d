//! The end of a run whose loop panicked: a mistake of ours.
//!
//! What the loop knew may be wrong from then on, so nothing that follows from it
//! is stored or committed any more; what had been stored before is right, and
//! librdkafka commits it with the leaving. The workers cannot go on either:
//! nobody would answer a rebalance for them, and the group would give their
//! partitions to others while they work. So they end after the record in hand,
//! the group is left, and the report names what broke, within the stop deadline
//! like every other end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{CLIENT_END, Member, TICK, ToMember, told};
use crate::event::EventKind;
use crate::lag::health::Phase;
use crate::member::group::{Group, GroupEvent};
use crate::report::{Report, StopReason, WorkerStop};
use crate::runtime::stop::CLOSE_WITHIN;
use crate::worker::pool::reader::READER;
use crate::worker::run::{FromWorker, WorkerExit};

impl Member {
    /// Ends everything that the loop looked after.
    pub(super) fn broken(mut self, panic: &str) -> Report {
        let reason = StopReason::FatalClientError {
            message: format!("the member's thread panicked: {panic}; please report this"),
        };
        tracing::error!("{reason}");
        let began = self.clock.now();
        self.shared.set_stopped_by(reason.clone());
        self.shared.set_phase(Phase::Stopping);
        self.threads.stop_all();
        let left_group = self.leave(&reason);
        let abandoned = self.threads.abandon();
        for &worker in &abandoned {
            self.note(worker, WorkerStop::Abandoned);
        }
        let (records, left_uncommitted) = self.count_up();
        self.shared.set_owned(Vec::new());
        self.shared.set_workers(0);
        self.starts.stop(CLIENT_END);
        told(
            &self.events,
            Report {
                reason,
                workers: self.ended_workers.into_values().collect(),
                records,
                left_uncommitted,
                abandoned,
                left_group,
                stop_took: self.clock.now().saturating_duration_since(began),
                advice: self.advice.unwrap_or_default(),
            },
        )
    }

    /// Waits for the workers and leaves the group, which waits for records in hand
    /// as long as a revoke does; false where it could not be left. A client over
    /// which the loop broke may well break this too: then it is not touched any
    /// more, and left behind.
    fn leave(&mut self, reason: &StopReason) -> bool {
        let (mut is_usable, mut is_leaving) = (true, false);
        let began = self.clock.now();
        let leave_at = began + self.settings.revoke_deadline;
        let mut deadline = began + self.settings.stop_deadline;
        let mut asked = 0;
        loop {
            while let Some(report) = self
                .early
                .pop_front()
                .or_else(|| self.reports.try_recv().ok())
            {
                if let FromWorker::Exited { worker, exit, .. } = report {
                    self.threads.join(worker);
                    self.note(worker, ended(exit, reason));
                }
            }
            while let Ok(message) = self.inbox.try_recv() {
                // Whoever sent a command learns that nobody answers any more.
                asked += usize::from(matches!(message, ToMember::Stop(_)));
            }
            let now = self.clock.now();
            if !is_leaving && (self.threads.running() == 0 || now >= leave_at) {
                is_leaving = true;
                is_usable = guarded(|| self.group.begin_close()).is_some();
            }
            if is_leaving {
                is_usable = is_usable && guarded(|| let_go(self.group.as_mut())).is_some();
            }
            let left = is_leaving && is_usable && guarded(|| self.group.is_closed()) == Some(true);
            self.shared.turned(self.clock.coarse());
            let is_over = self.threads.running() == 0 && (left || !is_usable);
            if is_over || now >= deadline {
                return left;
            }
            if asked > 0 {
                deadline = deadline.min(now + CLOSE_WITHIN);
                asked = 0;
            }
            if let Ok(report) = self.reports.recv_timeout(TICK) {
                self.early.push_back(report);
            }
        }
    }

    /// Notes how a worker ended, and tells.
    fn note(&mut self, worker: usize, reason: WorkerStop) {
        if worker == READER {
            return;
        }
        let stopped = EventKind::WorkerStopped {
            reason: reason.clone(),
            pid: self.threads.last_pid(worker),
        };
        self.events.send(Some(worker), stopped);
        self.ended_with(worker, reason);
    }

    /// What was completed, and what of that comes again, as far as the trackers
    /// can still be read.
    fn count_up(&mut self) -> (u64, u64) {
        let assignment = &mut self.assignment;
        guarded(|| {
            assignment.stop(&mut Vec::new());
            assignment.close();
            (
                assignment.completed_records(),
                assignment.left_uncommitted(),
            )
        })
        .unwrap_or_default()
    }
}

/// `None` where it panicked.
fn guarded<T>(what: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(what)).ok()
}

/// Answers what the group asks for, with nothing.
fn let_go(group: &mut dyn Group) {
    while let Some(event) = group.poll() {
        let answered = match event {
            GroupEvent::Assigned(partitions) => group.answer_assign(&partitions),
            GroupEvent::Revoked { partitions, .. } => group.answer_revoke(&partitions),
            _ => Ok(()),
        };
        if let Err(error) = answered {
            tracing::debug!("a rebalance could not be answered: {error}");
        }
    }
}

fn ended(exit: WorkerExit, run: &StopReason) -> WorkerStop {
    match exit {
        WorkerExit::Asked => WorkerStop::RunStopped(Box::new(run.clone())),
        WorkerExit::EndsRun(_, reason) | WorkerExit::Failed(reason) => reason,
    }
}
