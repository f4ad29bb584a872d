//! How a run ended, and what that means for the process.

use std::fmt;
use std::time::Duration;

use crate::lag::snapshot::Advice;
use crate::record::TopicPartition;

/// Why a run ended. Ordered by severity: where several reasons meet, the
/// greatest is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// Every partition that is assigned reached the end offset it had when it
    /// was assigned.
    EndReached,
    /// As many records as asked for were completed.
    CountReached,
    /// `stop()` was called on the handle.
    StopCalled,
    /// A signal came: SIGINT or SIGTERM.
    Signal,
    /// A second signal, or a second `stop`, ended the drain.
    SecondSignal,
    /// A handler answered [`Outcome::Stop`](crate::Outcome::Stop).
    HandlerStop {
        /// Where.
        partition: TopicPartition,
        /// At which record; it is delivered again after the next start.
        offset: i64,
        /// The handler's words.
        reason: String,
    },
    /// A record failed as often as the policy allows, or was rejected.
    RetriesExhausted {
        /// Where.
        partition: TopicPartition,
        /// Which record; it is delivered again after the next start.
        offset: i64,
        /// How often it was handed over.
        attempts: u32,
        /// What the handler said the last time.
        error: String,
    },
    /// A hook (`on_assigned`, `on_revoked`, `on_lost`) or a factory panicked.
    HookPanicked {
        /// Which hook.
        hook: &'static str,
        /// The panic's message.
        message: String,
    },
    /// A worker failed more often than the budget allows.
    RestartBudgetSpent {
        /// Its number.
        worker: usize,
        /// Why it failed the last time.
        last: String,
    },
    /// Another process of the group has our `group.instance.id`: under the
    /// classic protocol it took the name over, under KIP-848 it did not give it
    /// back within [`instance_wait`](crate::Builder::instance_wait). Nothing was
    /// committed since.
    InstanceTaken {
        /// The name.
        instance: String,
        /// What happened, and what to do.
        message: String,
    },
    /// The client or the cluster ended the membership for good.
    FatalClientError {
        /// What it said, and what to do.
        message: String,
    },
}

impl StopReason {
    /// The reason's name as the command prints it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EndReached => "end-reached",
            Self::CountReached => "count-reached",
            Self::StopCalled => "stop-called",
            Self::Signal => "signal",
            Self::SecondSignal => "second-signal",
            Self::HandlerStop { .. } => "handler-stop",
            Self::RetriesExhausted { .. } => "retries-exhausted",
            Self::HookPanicked { .. } => "hook-panicked",
            Self::RestartBudgetSpent { .. } => "restart-budget-spent",
            // To those who parse it a name that is taken is an error of the
            // client like others.
            Self::InstanceTaken { .. } | Self::FatalClientError { .. } => "fatal-client-error",
        }
    }

    /// True where the run failed rather than did what it was asked.
    pub fn is_failure(&self) -> bool {
        self.severity() >= FAILURE
    }

    /// Greater means that it explains the end better than a lesser one.
    pub(crate) fn severity(&self) -> u8 {
        match self {
            Self::EndReached => 0,
            Self::CountReached => 1,
            Self::StopCalled => 2,
            Self::Signal => 3,
            Self::SecondSignal => 4,
            Self::HandlerStop { .. } => FAILURE,
            Self::RetriesExhausted { .. } => FAILURE + 1,
            Self::RestartBudgetSpent { .. } => FAILURE + 2,
            Self::HookPanicked { .. } => FAILURE + 3,
            Self::InstanceTaken { .. } => FAILURE + 4,
            Self::FatalClientError { .. } => FAILURE + 5,
        }
    }
}

const FAILURE: u8 = 10;

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HandlerStop {
                partition,
                offset,
                reason,
            } => {
                write!(f, "the handler said stop at {partition}@{offset}: {reason}")
            }
            Self::RetriesExhausted {
                partition,
                offset,
                attempts,
                error,
            } => write!(
                f,
                "the record {partition}@{offset} failed ({attempts} times) and is not tried again; \
                 the last time: {error}"
            ),
            Self::HookPanicked { hook, message } => write!(f, "{hook} panicked: {message}"),
            Self::RestartBudgetSpent { worker, last } => write!(
                f,
                "worker {worker} failed more often than its restart budget allows; the last time: \
                 {last}"
            ),
            Self::InstanceTaken { message, .. } | Self::FatalClientError { message } => {
                f.write_str(message)
            }
            simple => f.write_str(simple.name()),
        }
    }
}

/// Why one worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerStop {
    /// The run stopped, for that reason, and the worker with it.
    RunStopped(Box<StopReason>),
    /// Fewer workers are wanted: fewer partitions, or `scale` was called.
    ScaledDown,
    /// All workers are replaced, one after the other: SIGHUP, or
    /// [`Handle::restart_workers`](crate::Handle::restart_workers).
    Renewed,
    /// The handler answered [`Outcome::Stop`](crate::Outcome::Stop).
    HandlerStop,
    /// The handler panicked; with the panic's message.
    HandlerPanicked(String),
    /// A hook or the factory panicked; with the panic's message.
    HookPanicked(String),
    /// A record failed as often as the policy allows.
    RetriesExhausted,
    /// The worker's source could not be opened or failed; with the error.
    SourceFailed(String),
    /// The worker's process ended by itself; with how it did.
    ChildExited(String),
    /// The worker's process said nothing, or nothing that is understood, and was
    /// killed; with what was the matter.
    ChildSilent(String),
    /// The handler did not return before the stop deadline. Its thread is left
    /// behind and ends with the process; a worker's own process is killed.
    Abandoned,
}

impl WorkerStop {
    /// The reason's name as the command prints it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RunStopped(reason) => reason.name(),
            Self::ScaledDown => "scaled-down",
            Self::Renewed => "stop-called",
            Self::HandlerStop => "handler-stop",
            Self::HandlerPanicked(_) => "handler-panicked",
            Self::HookPanicked(_) => "hook-panicked",
            Self::RetriesExhausted => "retries-exhausted",
            Self::SourceFailed(_) => "fatal-client-error",
            Self::ChildExited(_) => "child-exited",
            Self::ChildSilent(_) => "child-silent",
            Self::Abandoned => "abandoned",
        }
    }

    /// The panic's or error's text, where there is one.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::HandlerPanicked(text)
            | Self::HookPanicked(text)
            | Self::SourceFailed(text)
            | Self::ChildExited(text)
            | Self::ChildSilent(text) => Some(text),
            _ => None,
        }
    }
}

/// How one worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerReport {
    /// Its number.
    pub worker: usize,
    /// Why it ended.
    pub reason: WorkerStop,
    /// How often a worker of this number was replaced.
    pub restarts: u32,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Why.
    pub reason: StopReason,
    /// The workers that ran at the end, by number.
    pub workers: Vec<WorkerReport>,
    /// Records that were completed.
    pub records: u64,
    /// Records that were handed to a handler and not committed: still in the
    /// handler at the deadline, or completed after the last commit that the
    /// group confirmed. They are delivered again.
    pub left_uncommitted: u64,
    /// Numbers of the workers whose handler did not return before the
    /// deadline. Their threads were left behind; their processes, where they had
    /// their own, were killed.
    pub abandoned: Vec<usize>,
    /// False where the client did not come to an end in time: the group then
    /// waits for the session to expire. True says that it left as far as it
    /// could: a coordinator that is known to be away is not waited for, and
    /// finds out by the session as well.
    pub left_group: bool,
    /// How long the stop took, from its cause to the end of the run.
    pub stop_took: Duration,
    /// What the load wanted when the stop began: how many workers, and of how
    /// many partitions. Unknown after less than half a minute.
    pub advice: Advice,
}

impl Report {
    /// The member's own thread panicked, which is a bug of keepup: what it knew
    /// is gone with it.
    pub(crate) fn broken(message: &str) -> Self {
        Self {
            reason: StopReason::FatalClientError {
                message: format!("the member's thread panicked: {message}; please report this"),
            },
            workers: Vec::new(),
            records: 0,
            left_uncommitted: 0,
            abandoned: Vec::new(),
            left_group: false,
            stop_took: Duration::ZERO,
            advice: Advice::default(),
        }
    }

    /// The exit code that the command ends with, for programs that want the
    /// same: 0 did what was asked, 1 failed, 3 stopped with work left
    /// uncommitted.
    pub fn exit_code(&self) -> i32 {
        if self.reason.is_failure() {
            1
        } else if self.left_uncommitted > 0 || !self.abandoned.is_empty() {
            3
        } else {
            0
        }
    }
}
