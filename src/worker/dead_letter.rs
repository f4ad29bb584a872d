//! Records that nobody could work on, on their way to the dead-letter topic.
//!
//! A dead letter is completed only when the broker has it, which takes a round
//! trip or, where the broker is down, much longer. The lane waits for it, and
//! nothing else does: the worker asks at each step what became of it
//! ([`Delivery`]), and reads its other lanes meanwhile.
//!
//! What a lane waits for is written down with the record that failed
//! ([`Dead`]), not in the worker, so it goes with the lane to another worker: a
//! record whose handler panicked is written by the successor, and one that is
//! under way when its worker ends is not written twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::config::RetryPolicy;
use crate::record::{Record, TopicPartition};
use crate::source::Waker;
use crate::worker::retry::{self, Hope};

/// A record and what is to be told with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Letter<'a> {
    /// Its attempt is the last one: so often it was handed over.
    pub(crate) record: Record<'a>,
    /// What the handler said the last time.
    pub(crate) error: &'a str,
    /// The topic has no partition with the record's number.
    pub(crate) any_partition: bool,
}

/// Writes dead letters. One per run, shared by its workers.
pub(crate) trait DeadLetters: Send + Sync {
    /// The topic that they are written to.
    fn topic(&self) -> &str;

    /// Begins to write a letter, without waiting. `delivery` is told what became
    /// of it within [`DeadLetters::patience`].
    fn send(&self, letter: &Letter<'_>, delivery: &Arc<Delivery>);

    /// After that time a letter is written or has failed.
    fn patience(&self) -> Duration;

    /// Takes back what is not on its way to a broker yet, of all lanes: whose
    /// letters are still wanted sends them again.
    fn recall(&self);
}

/// Why a record of that partition cannot become a letter, if so.
pub(crate) fn refused(
    letters: Option<&dyn DeadLetters>,
    partition: &TopicPartition,
) -> Option<&'static str> {
    match letters {
        None => Some(
            "there is no dead-letter topic to write it to: name one (--dead-letter, or \
             dead_letter())",
        ),
        Some(letters) if letters.topic() == partition.topic() => {
            Some("it was read from the dead-letter topic itself")
        }
        Some(_) => None,
    }
}

/// Says that a letter was not written, and why.
pub(crate) fn unwritten(
    letters: Option<&dyn DeadLetters>,
    partition: &TopicPartition,
    offset: i64,
    sent: &Sent,
) -> String {
    let topic = letters.map_or("", |letters| letters.topic());
    let why = match sent {
        Sent::Failed(why) => why.as_str(),
        Sent::NoSuchPartition => "it has no partition to write to",
        Sent::Written | Sent::Recalled => "it was not sent",
    };
    format!("{partition}@{offset} could not be written to the dead-letter topic {topic}: {why}")
}

/// What became of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// All in-sync replicas have it.
    Written,
    /// The topic has no partition of that number.
    NoSuchPartition,
    /// It was taken back before it went out.
    Recalled,
    /// It was not written, or nobody said that it was.
    Failed(String),
}

/// A letter that is under way.
pub(crate) struct Delivery {
    state: Mutex<State>,
    told: Condvar,
}

struct State {
    sent: Option<Sent>,
    waker: Waker,
}

impl Delivery {
    /// A letter whose worker is woken by `waker`.
    pub(crate) fn new(waker: Waker) -> Self {
        let state = State { sent: None, waker };
        Self {
            state: Mutex::new(state),
            told: Condvar::new(),
        }
    }

    /// From now on another worker waits for it.
    pub(crate) fn set_waker(&self, waker: Waker) {
        self.state.lock().waker = waker;
    }

    /// Tells what became of it.
    pub(crate) fn tell(&self, sent: Sent) {
        let mut state = self.state.lock();
        state.sent = Some(sent);
        state.waker.wake();
        drop(state);
        self.told.notify_all();
    }

    /// What became of it, if that is known.
    pub(crate) fn look(&self) -> Option<Sent> {
        self.state.lock().sent.clone()
    }

    /// Waits until that is known, for `patience` at most.
    pub(crate) fn wait(&self, patience: Duration) {
        let mut state = self.state.lock();
        self.told
            .wait_while_for(&mut state, |state| state.sent.is_none(), patience);
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Delivery").field(&self.look()).finish()
    }
}

/// Says of a failed record that it goes to the dead-letter topic, with all that
/// follow it up to an offset.
#[derive(Clone, Debug)]
pub(crate) struct Dead {
    /// The last one: the record's own offset, or that of the last record of a
    /// batch that failed as a whole.
    pub(crate) through: i64,
    /// What the handler said.
    pub(crate) error: String,
    /// The one that is under way.
    pub(crate) delivery: Option<Arc<Delivery>>,
    /// How often it could not be written.
    failures: u32,
    /// Whether the next letter goes to any partition, since the topic has none
    /// with the record's number.
    pub(crate) any_partition: bool,
}

impl PartialEq for Dead {
    /// A delivery is itself only.
    fn eq(&self, other: &Self) -> bool {
        let same_delivery = match (&self.delivery, &other.delivery) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        same_delivery
            && (self.through, &self.error, self.failures, self.any_partition)
                == (
                    other.through,
                    &other.error,
                    other.failures,
                    other.any_partition,
                )
    }
}

impl Eq for Dead {}

/// What follows from what became of a letter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Its record is completed.
    Completed,
    /// It is sent again, not before that moment if there is one.
    Again { not_before: Option<Instant> },
    /// It could not be written as often as the policy allows.
    GiveUp,
}

impl Dead {
    pub(crate) fn new(through: i64, error: String) -> Self {
        Self {
            through,
            error,
            delivery: None,
            failures: 0,
            any_partition: false,
        }
    }

    /// Begins to write the record's letter, about which `waker`'s worker wants to
    /// know.
    pub(crate) fn send(&mut self, record: Record<'_>, letters: &dyn DeadLetters, waker: Waker) {
        let delivery = Arc::new(Delivery::new(waker));
        let letter = Letter {
            record,
            error: &self.error,
            any_partition: self.any_partition,
        };
        letters.send(&letter, &delivery);
        self.delivery = Some(delivery);
    }

    /// Takes over what became of the letter that was under way. Writing is tried
    /// as often as handling was, with the same waits.
    pub(crate) fn sent(
        &mut self,
        sent: &Sent,
        policy: &RetryPolicy,
        now: Instant,
        chance: f64,
    ) -> Next {
        self.delivery = None;
        match sent {
            Sent::Written => {
                self.failures = 0;
                Next::Completed
            }
            Sent::Recalled => Next::Again { not_before: None },
            Sent::NoSuchPartition if !self.any_partition => {
                self.any_partition = true;
                Next::Again { not_before: None }
            }
            Sent::NoSuchPartition | Sent::Failed(_) => {
                self.failures = self.failures.saturating_add(1);
                let hope = Hope::Retry { after: None };
                match retry::decide(policy, self.failures, hope, now, chance) {
                    retry::Verdict::Again { not_before } => Next::Again {
                        not_before: Some(not_before),
                    },
                    retry::Verdict::Exhausted => Next::GiveUp,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_letter_that_is_not_written_is_tried_as_often_as_the_policy_allows() {
        let policy = RetryPolicy {
            attempts: 3,
            ..RetryPolicy::default()
        };
        let now = Clock::manual().now();
        let mut dead = Dead::new(7, "no".into());
        let mut next = |sent: Sent| dead.sent(&sent, &policy, now, 0.5);
        let again = |millis: u64| Next::Again {
            not_before: Some(now + Duration::from_millis(millis)),
        };
        let failed = || Sent::Failed("timed out".into());
        // Neither a partition that is not there nor a recall is a failure.
        assert_eq!(
            next(Sent::NoSuchPartition),
            Next::Again { not_before: None }
        );
        assert_eq!(next(Sent::Recalled), Next::Again { not_before: None });
        assert_eq!(next(failed()), again(100));
        assert_eq!(next(Sent::NoSuchPartition), again(200), "twice is one");
        assert_eq!(next(failed()), Next::GiveUp);
        assert_eq!(next(Sent::Written), Next::Completed);
        assert_eq!(next(failed()), again(100), "the next letter begins anew");
        assert!(dead.any_partition, "and knows what was found");
    }
}
