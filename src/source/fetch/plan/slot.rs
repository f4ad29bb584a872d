//! One partition of a source: where it stands, what is held of it, what is
//! wrong with it.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use uuid::Uuid;

use super::epochs::{Agreement, Epochs};
use super::session::Key;
use super::{Kit, MOST_CORRUPT, PREFERRED_FOR, RETRY, to_i32};
use crate::clock::Coarse;
use crate::kafka::cluster::{ClusterSnapshot, Leader};
use crate::kafka::messages::{Diverging, FetchPartition};
use crate::record::{Batch, Entry};
use crate::source::fetch::record_set::RecordSetReader;
use crate::source::{Pulled, ReadError, ReadFrom};

/// One partition.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) from: ReadFrom,
    /// The first id that the topic was known by; another is another topic.
    pub(super) topic_id: Uuid,
    pub(super) leader: Option<Leader>,
    /// The replica that the leader named to be read from, and for how long.
    preferred: Option<(i32, Instant)>,
    /// The offset after what was given out.
    pub(super) position: i64,
    /// The offset after what is held: what to ask for.
    pub(super) fetch_offset: i64,
    /// The leader epochs of what is held and what was given.
    pub(super) epochs: Epochs,
    /// What is asked for is only up to where the broker's log agrees with what
    /// was read.
    pub(super) is_probing: bool,
    pub(super) answers: VecDeque<Answer>,
    /// What was given back, in order.
    pub(super) returned: VecDeque<Batch>,
    pub(super) trouble: Trouble,
    pub(super) is_in_turn: bool,
    /// The broker that is being asked.
    pub(super) asked_of: Option<i32>,
    pub(super) not_before: Option<Instant>,
    pub(super) retry_at: Option<Instant>,
    pub(super) failures: u32,
    pub(super) corrupt: u32,
    /// When it last brought records, in answers.
    pub(super) served: u64,
    /// There is more of it on the broker, as far as is known.
    pub(super) is_active: bool,
    /// The end that was told last; none until the first time.
    pub(super) told: Option<i64>,
    /// The end that a broker named last; none where that says nothing.
    pub(super) end_offset: Option<i64>,
    /// A wire batch that a broker cut is this long.
    pub(super) needs: usize,
}

/// Why a partition is not read on, if it is not.
#[derive(Debug)]
pub(super) enum Trouble {
    None,
    /// To be told after everything that is held.
    Untold(ReadError),
    /// Until it is rewound.
    Told,
}

impl Trouble {
    /// What is to be told, once.
    fn tell(&mut self) -> Option<ReadError> {
        match std::mem::replace(self, Self::Told) {
            Self::Untold(error) => Some(error),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// What an answer brought for one partition.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) broker: i32,
    pub(super) reader: RecordSetReader,
    pub(super) end_offset: i64,
    pub(super) log_start: i64,
    pub(super) fetched_at: Coarse,
}

/// A partition in the order in which a request asks: who waits for more than
/// the answer before had room for, then who has waited longest.
pub(super) type Waiting = (
    std::cmp::Reverse<usize>,
    u64,
    crate::record::AssignmentEpoch,
);

impl Slot {
    pub(super) fn new(from: ReadFrom) -> Self {
        Self {
            topic_id: Uuid::nil(),
            leader: None,
            preferred: None,
            position: from.offset,
            fetch_offset: from.offset,
            epochs: Epochs::default(),
            is_probing: false,
            answers: VecDeque::new(),
            returned: VecDeque::new(),
            trouble: Trouble::None,
            is_in_turn: false,
            asked_of: None,
            not_before: None,
            retry_at: None,
            failures: 0,
            corrupt: 0,
            served: 0,
            is_active: true,
            told: None,
            end_offset: None,
            needs: 0,
            from,
        }
    }

    // Whom to ask.

    /// Takes over who leads it. Returns whether the topic turned out to be
    /// another one of the same name.
    pub(super) fn follow(&mut self, cluster: &ClusterSnapshot) -> bool {
        let partition = &self.from.partition;
        let leader = cluster
            .leader(partition.topic(), partition.partition())
            .filter(|leader| cluster.broker(leader.id).is_some());
        if leader != self.leader {
            // Whatever there was to wait for has happened.
            self.retry_at = None;
        }
        self.leader = leader;
        let id = cluster.topic_id(partition.topic());
        if self
            .preferred
            .is_some_and(|(broker, _)| cluster.broker(broker).is_none())
        {
            self.preferred = None;
        }
        if self.asked_of != self.broker() {
            // Who was asked may never answer, and is not to be waited for.
            self.asked_of = None;
        }
        if self.topic_id.is_nil() {
            self.topic_id = id;
        }
        let is_another = !id.is_nil() && id != self.topic_id;
        if is_another && matches!(self.trouble, Trouble::None) {
            self.trouble = Trouble::Untold(ReadError::TopicRecreated {
                topic: self.from.partition.shared_topic(),
            });
            return true;
        }
        false
    }

    /// The broker that is to be asked.
    pub(super) fn broker(&self) -> Option<i32> {
        // Without a leader nobody can say whether a replica is up to date.
        let leader = self.leader?;
        Some(self.preferred.map_or(leader.id, |(broker, _)| broker))
    }

    /// Whether the broker that is asked is not the leader.
    pub(super) fn is_with_follower(&self) -> bool {
        self.broker() != self.leader.map(|leader| leader.id)
    }

    /// The leader names a replica to be read from.
    pub(super) fn prefer(&mut self, broker: i32, now: Instant) {
        self.preferred = Some((broker, now + PREFERRED_FOR));
    }

    /// Goes back to the leader. Returns whether it was elsewhere.
    pub(super) fn prefer_leader(&mut self) -> bool {
        self.preferred.take().is_some()
    }

    /// Goes back to the leader where that is to be asked again which replica
    /// to read from.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.preferred.is_some_and(|(_, until)| until <= now) {
            self.preferred = None;
        }
    }

    // What to ask.

    /// Whether it is to be read at all, now or later.
    pub(super) fn wants(&self) -> bool {
        matches!(self.trouble, Trouble::None) && !self.from.paused && !self.is_at_until()
    }

    /// Whether what is held reaches `until`. The first answer is wanted even
    /// then: it tells where the partition ends.
    fn is_at_until(&self) -> bool {
        let is_first = self.told.is_none() && self.answers.is_empty();
        !is_first
            && self
                .from
                .until
                .is_some_and(|until| self.fetch_offset >= until)
    }

    /// How much is there to give, in answers with records.
    pub(super) fn held(&self) -> usize {
        let answers = self
            .answers
            .iter()
            .filter(|answer| !answer.reader.is_at_end());
        answers.count() + self.returned.len()
    }

    pub(super) fn waits_until(&self) -> Option<Instant> {
        self.not_before.max(self.retry_at)
    }

    pub(super) fn waiting(&self) -> Waiting {
        (std::cmp::Reverse(self.needs), self.served, self.from.epoch)
    }

    pub(super) fn key(&self) -> Key {
        Key {
            topic: self.from.partition.shared_topic(),
            id: self.topic_id,
            partition: self.from.partition.partition(),
        }
    }

    pub(super) fn request(&self, max_bytes: usize) -> FetchPartition {
        FetchPartition {
            partition: self.from.partition.partition(),
            leader_epoch: self.leader.map_or(-1, |leader| leader.epoch),
            offset: self.fetch_offset,
            last_fetched_epoch: self.epochs.before(self.fetch_offset),
            max_bytes: to_i32(max_bytes),
        }
    }

    /// It cannot be served now: it is asked for again after a while. Returns
    /// whether that is new.
    pub(super) fn wait(&mut self, now: Instant, random: f64) -> bool {
        self.failures += 1;
        self.retry_at = Some(now + RETRY.delay(self.failures, random));
        self.failures == 1
    }

    // Where it stands.

    /// Drops everything that is held, to read again from `offset`.
    pub(super) fn drop_held(&mut self, offset: i64) {
        self.empty(offset);
        // Of what is to be told as truncated nothing is known any more.
        if !matches!(self.trouble, Trouble::Untold(ReadError::Truncated { .. })) {
            self.epochs.go_to(offset);
        }
    }

    fn empty(&mut self, offset: i64) {
        self.answers.clear();
        self.returned.clear();
        self.position = offset;
        self.fetch_offset = offset;
        self.is_probing = false;
    }

    /// Where to go on where what is held is dropped.
    pub(super) fn resume_offset(&self) -> i64 {
        self.returned.front().map_or(self.position, first_left)
    }

    /// Goes to where it was told to go. Where that is in what is held, or right
    /// before it, that is kept: a record that is tried again is not fetched
    /// again.
    pub(super) fn rewind(&mut self, offset: i64, not_before: Option<Instant>) {
        if self.keeps(offset) {
            self.not_before = not_before;
            return;
        }
        match &mut self.trouble {
            // Still so: what lies before the offset is not what was read.
            Trouble::Untold(ReadError::Truncated {
                offset: read_to,
                end_offset,
            }) if *end_offset < offset => *read_to = offset,
            _ => self.trouble = Trouble::None,
        }
        self.drop_held(offset);
        self.corrupt = 0;
        self.not_before = not_before;
        self.told = None;
    }

    /// Takes off what is held below `offset`, where the rest begins there.
    fn keeps(&mut self, offset: i64) -> bool {
        let begins_at = self.resume_offset();
        if !matches!(self.trouble, Trouble::None) || !(begins_at..=self.position).contains(&offset)
        {
            return false;
        }
        while let Some(batch) = self.returned.front_mut() {
            if batch.next_offset > offset {
                let left = &batch.entries[batch.cursor.min(batch.entries.len())..];
                batch.cursor += left.partition_point(|entry| entry.offset < offset);
                break;
            }
            self.returned.pop_front();
        }
        true
    }

    /// Whether it is held back at that moment, with something to give.
    pub(super) fn is_held_back(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|moment| moment > now)
    }

    /// The broker's log differs from what was read, somewhere below what was
    /// asked for.
    pub(super) fn diverged(&mut self, diverging: Diverging) {
        let asked = self.fetch_offset;
        let given = self.resume_offset();
        let agreement = self.epochs.agreement(asked, diverging);
        // What was not given out yet is read again as it is now.
        self.answers.clear();
        self.returned.clear();
        self.position = given;
        match agreement {
            // Still to be found out, and worth knowing only below what was given.
            Agreement::AtMost(at_most)
                if at_most < asked && self.epochs.before(at_most.min(given)) >= 0 =>
            {
                self.fetch_offset = at_most.min(given);
                self.is_probing = true;
            }
            Agreement::AtMost(common) | Agreement::UpTo(common) => self.truncated(common),
        }
    }

    /// The broker's log agrees with what was read up to `common`.
    pub(super) fn truncated(&mut self, common: i64) {
        let given = self.position;
        self.end_offset = None;
        self.empty(given);
        self.epochs.go_to(given.min(common));
        if common >= given {
            tracing::info!(
                partition = %self.from.partition,
                given,
                common,
                "the log was truncated above what was given out; reading on from there"
            );
            return;
        }
        self.trouble = Trouble::Untold(ReadError::Truncated {
            offset: given,
            end_offset: common,
        });
    }

    // Giving out.

    pub(super) fn has_something(&self) -> bool {
        !self.answers.is_empty()
            || !self.returned.is_empty()
            || matches!(self.trouble, Trouble::Untold(_))
    }

    pub(super) fn give(&mut self, kit: &mut Kit, now: Instant, random: f64) -> Option<Pulled> {
        if let Some(batch) = self.returned.pop_front() {
            return Some(Pulled::Batch(batch));
        }
        while let Some(mut answer) = self.answers.pop_front() {
            let mut entries = kit.spare.pop().unwrap_or_default();
            let read = answer
                .reader
                .next(&mut kit.decompressor, &kit.pool, &mut entries);
            match read {
                Ok(Some(piece)) => {
                    self.corrupt = 0;
                    let batch = self.batch(&answer, piece.bytes, entries, piece.next_offset);
                    let is_at_until = self
                        .from
                        .until
                        .is_some_and(|until| piece.next_offset >= until);
                    if is_at_until {
                        self.answers.clear();
                    } else if !answer.reader.is_at_end() {
                        self.answers.push_front(answer);
                    }
                    return Some(Pulled::Batch(batch));
                }
                Ok(None) => {
                    kit.keep(entries);
                    if self.told != Some(answer.end_offset) {
                        let position = self.position;
                        let batch = self.batch(&answer, Bytes::new(), Vec::new(), position);
                        return Some(Pulled::Batch(batch));
                    }
                }
                Err(mut error) => {
                    kit.keep(entries);
                    let position = self.position;
                    self.drop_held(position);
                    if let ReadError::Corrupt { broker, .. } = &mut error {
                        *broker = Some(answer.broker);
                    }
                    self.damaged(error, now, random);
                }
            }
        }
        let error = self.trouble.tell()?;
        let offset = self.position;
        self.empty(offset);
        if matches!(error, ReadError::TopicRecreated { .. }) {
            // Whoever goes on after this means the new one.
            self.topic_id = Uuid::nil();
            self.epochs = Epochs::default();
        }
        Some(Pulled::Failed {
            epoch: self.from.epoch,
            offset,
            error,
        })
    }

    fn damaged(&mut self, error: ReadError, now: Instant, random: f64) {
        self.corrupt += 1;
        let passes = matches!(error, ReadError::Corrupt { .. }) && self.corrupt < MOST_CORRUPT;
        if passes {
            tracing::warn!(partition = %self.from.partition, %error, "asking for the records again");
            self.retry_at = Some(now + RETRY.delay(self.corrupt, random));
        } else {
            self.trouble = Trouble::Untold(error);
        }
    }

    fn batch(
        &mut self,
        answer: &Answer,
        bytes: Bytes,
        entries: Vec<Entry>,
        next_offset: i64,
    ) -> Batch {
        self.position = next_offset;
        self.told = Some(answer.end_offset);
        Batch {
            partition: self.from.partition.clone(),
            epoch: self.from.epoch,
            bytes,
            entries,
            cursor: 0,
            next_offset,
            end_offset: answer.end_offset,
            log_start: answer.log_start,
            fetched_at: answer.fetched_at,
        }
    }
}

/// The first offset of a batch that was not handed to a handler.
pub(super) fn first_left(batch: &Batch) -> i64 {
    batch
        .entries
        .get(batch.cursor)
        .map_or(batch.next_offset, |entry| entry.offset)
}
