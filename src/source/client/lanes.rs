//! What is read, from where, and what is given next: the decisions.
//!
//! librdkafka either reads a partition or does not. Everything that a source
//! may be told (start, stop, rewind, hold back, pause) comes down to that and an
//! offset, so there is one mechanism for all of it: leave the partition, and
//! read it again from where the next record is wanted. What was buffered goes
//! with leaving; a partition that is held back or paused holds no memory.
//!
//! This file is a function of what is wanted, what was taken and time;
//! [`super`] carries it out.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::kafka::fetch_client::ClientTrouble;
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::source::{ReadError, ReadFrom};

/// How often records that cannot be read are asked for again before that is
/// told: what was damaged on the way comes whole the next time.
const MOST_CORRUPT: u32 = 3;

/// Before records that cannot be read are asked for again.
const CORRUPT_WAIT: Duration = Duration::from_millis(100);

/// Before the client is told again what it refused to do.
const REFUSED_WAIT: Duration = Duration::from_secs(1);

/// One partition that is to be read.
#[derive(Debug)]
pub(super) struct Lane {
    partition: TopicPartition,
    /// The offset after what was taken from the client.
    position: i64,
    until: Option<i64>,
    is_paused: bool,
    not_before: Option<Instant>,
    /// The client reads it.
    is_read: bool,
    /// The client reads it, but not from `position`.
    is_astray: bool,
    returned: VecDeque<Batch>,
    /// Position and end that were given last.
    told: Option<(i64, i64)>,
    /// Troubles in a row, with nothing taken in between.
    troubles: u32,
    trouble: Trouble,
}

#[derive(Debug)]
enum Trouble {
    None,
    Untold(ReadError),
    Told,
}

impl Lane {
    fn is_past_until(&self) -> bool {
        self.until.is_some_and(|until| self.position >= until)
    }

    /// Whether the client is to read it.
    fn is_wanted(&self, now: Instant) -> bool {
        !self.is_paused
            && matches!(self.trouble, Trouble::None)
            && !self.is_past_until()
            && self.not_before.is_none_or(|moment| moment <= now)
    }

    fn go_to(&mut self, offset: i64) {
        self.position = offset;
        self.returned.clear();
        self.is_astray = self.is_read;
    }
}

/// What the client is to be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) leave: Vec<TopicPartition>,
    /// Partitions that are nobody's any more, of those left.
    pub(super) forget: Vec<TopicPartition>,
    pub(super) read: Vec<(TopicPartition, i64)>,
}

/// What a lane has to give without looking into the client's queue.
#[derive(Debug)]
pub(super) enum Turn {
    Batch(Batch),
    /// An empty batch at this position.
    Empty(TopicPartition, i64),
    Failed(i64, ReadError),
    /// Look into the queue: records up to (and without) `until`.
    Take {
        partition: TopicPartition,
        position: i64,
        until: Option<i64>,
    },
    Nothing,
}

/// The partitions of one worker.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_epoch: BTreeMap<AssignmentEpoch, Lane>,
    turns: VecDeque<AssignmentEpoch>,
    /// Left by nobody's wish but the source's.
    gone: Vec<TopicPartition>,
    is_changed: bool,
}

impl Lanes {
    pub(super) fn start(&mut self, from: ReadFrom) {
        // The client reads a partition once only.
        let before = self
            .by_epoch
            .iter()
            .find(|(_, lane)| lane.partition == from.partition)
            .map(|(epoch, _)| *epoch);
        if let Some(before) = before {
            self.stop(before);
        }
        self.by_epoch.insert(
            from.epoch,
            Lane {
                partition: from.partition,
                position: from.offset,
                // Above it the log may have lost what is there, and only
                // reading tells.
                until: from.until.map(|until| {
                    if from.offset > until {
                        from.offset.saturating_add(1)
                    } else {
                        until
                    }
                }),
                is_paused: from.paused,
                not_before: None,
                is_read: false,
                is_astray: false,
                returned: VecDeque::new(),
                told: None,
                troubles: 0,
                trouble: Trouble::None,
            },
        );
        self.turns.push_back(from.epoch);
        self.is_changed = true;
    }

    pub(super) fn stop(&mut self, epoch: AssignmentEpoch) {
        if let Some(lane) = self.by_epoch.remove(&epoch) {
            self.turns.retain(|other| *other != epoch);
            if lane.is_read {
                self.gone.push(lane.partition);
            }
            self.is_changed = true;
        }
    }

    pub(super) fn rewind(
        &mut self,
        epoch: AssignmentEpoch,
        offset: i64,
        not_before: Option<Instant>,
    ) {
        if let Some(lane) = self.by_epoch.get_mut(&epoch) {
            lane.go_to(offset);
            lane.not_before = not_before;
            lane.told = None;
            lane.troubles = 0;
            lane.trouble = Trouble::None;
            self.is_changed = true;
        }
    }

    pub(super) fn set_paused(&mut self, epoch: AssignmentEpoch, paused: bool) {
        if let Some(lane) = self.by_epoch.get_mut(&epoch) {
            lane.is_paused = paused;
            if paused {
                let resume_at = lane.returned.front().map_or(lane.position, first_left);
                lane.go_to(resume_at);
            }
            self.is_changed = true;
        }
    }

    pub(super) fn put_back(&mut self, batch: Batch) -> Option<Batch> {
        let epoch = batch.epoch;
        let Some(lane) = self.by_epoch.get_mut(&epoch) else {
            return Some(batch);
        };
        // Rewound below it since it was given: it will be read again.
        if batch.next_offset > lane.position {
            return Some(batch);
        }
        if lane.is_paused {
            let offset = first_left(&batch).min(lane.position);
            lane.go_to(offset);
            return Some(batch);
        }
        let place = lane
            .returned
            .partition_point(|other| other.next_offset < batch.next_offset);
        lane.returned.insert(place, batch);
        // Its turn comes after everybody else's.
        self.turns.retain(|other| *other != epoch);
        self.turns.push_back(epoch);
        None
    }

    pub(super) fn len(&self) -> usize {
        self.by_epoch.len()
    }

    /// The client has lost these partitions' queues.
    pub(super) fn went_astray(&mut self, partitions: &[TopicPartition]) {
        for lane in self.by_epoch.values_mut() {
            if lane.is_read && partitions.contains(&lane.partition) {
                lane.is_astray = true;
                self.is_changed = true;
            }
        }
    }

    /// There is another client, which reads nothing yet.
    pub(super) fn forget_client(&mut self) {
        self.gone.clear();
        for lane in self.by_epoch.values_mut() {
            lane.is_read = false;
            lane.is_astray = false;
        }
        self.is_changed = true;
    }

    /// What the client is to do now, which is taken for done.
    pub(super) fn changes(&mut self, now: Instant) -> Changes {
        let is_time = self.next_moment().is_some_and(|moment| moment <= now);
        if !std::mem::take(&mut self.is_changed) && !is_time {
            return Changes::default();
        }
        let mut changes = Changes {
            leave: self.gone.clone(),
            forget: std::mem::take(&mut self.gone),
            read: Vec::new(),
        };
        for lane in self.by_epoch.values_mut() {
            let is_wanted = lane.is_wanted(now);
            if lane.is_read && (lane.is_astray || !is_wanted) {
                changes.leave.push(lane.partition.clone());
                lane.is_read = false;
                lane.is_astray = false;
            }
            // A moment that has come is over, whether or not it is read now:
            // whoever waits for the next one would not wait at all.
            lane.not_before = lane.not_before.filter(|moment| *moment > now);
            if is_wanted && !lane.is_read {
                changes.read.push((lane.partition.clone(), lane.position));
                lane.is_read = true;
                // A partition that was left and comes back keeps its queue.
                changes.forget.retain(|gone| *gone != lane.partition);
            }
        }
        changes
    }

    /// The client would not do what it was told.
    pub(super) fn refused(&mut self, changes: &Changes, now: Instant) {
        for lane in self.by_epoch.values_mut() {
            let refused = changes
                .read
                .iter()
                .any(|(partition, _)| *partition == lane.partition);
            if refused {
                lane.is_read = false;
                lane.not_before = Some(now + REFUSED_WAIT);
            }
        }
    }

    /// When a partition that is held back is to be read.
    pub(super) fn next_moment(&self) -> Option<Instant> {
        self.by_epoch
            .values()
            .filter(|lane| !lane.is_read && !lane.is_paused)
            .filter_map(|lane| lane.not_before)
            .min()
    }

    /// Whose turn it is. Each lane has one before any has another.
    pub(super) fn next_turn(&mut self) -> Option<AssignmentEpoch> {
        let epoch = self.turns.pop_front()?;
        self.turns.push_back(epoch);
        Some(epoch)
    }

    /// What a lane has to give.
    pub(super) fn turn(&mut self, epoch: AssignmentEpoch) -> Turn {
        let Some(lane) = self.by_epoch.get_mut(&epoch) else {
            return Turn::Nothing;
        };
        if lane.is_paused {
            return Turn::Nothing;
        }
        if let Some(batch) = lane.returned.pop_front() {
            return Turn::Batch(batch);
        }
        if let Trouble::Untold(error) = &lane.trouble {
            let error = error.clone();
            lane.trouble = Trouble::Told;
            return Turn::Failed(lane.position, error);
        }
        if lane.is_past_until() {
            if lane.told.is_none() {
                lane.told = Some((lane.position, -1));
                return Turn::Empty(lane.partition.clone(), lane.position);
            }
            return Turn::Nothing;
        }
        if lane.is_read && !lane.is_astray {
            return Turn::Take {
                partition: lane.partition.clone(),
                position: lane.position,
                until: lane.until,
            };
        }
        Turn::Nothing
    }

    /// Something was taken: the lane goes on at `next_offset`. Returns whether
    /// that is worth a batch where it has no records.
    pub(super) fn took(
        &mut self,
        epoch: AssignmentEpoch,
        next_offset: i64,
        end_offset: i64,
    ) -> bool {
        let Some(lane) = self.by_epoch.get_mut(&epoch) else {
            return false;
        };
        lane.position = next_offset;
        lane.troubles = 0;
        if lane.is_past_until() {
            // The client has no business with it any more.
            self.is_changed = true;
        }
        lane.told.replace((next_offset, end_offset)) != Some((next_offset, end_offset))
    }

    /// The client cannot read on.
    pub(super) fn has_trouble(
        &mut self,
        epoch: AssignmentEpoch,
        trouble: ClientTrouble,
        now: Instant,
    ) {
        let Some(lane) = self.by_epoch.get_mut(&epoch) else {
            return;
        };
        let offset = lane.position;
        lane.troubles = lane.troubles.saturating_add(1);
        lane.is_astray = lane.is_read;
        self.is_changed = true;
        let error = match trouble {
            // It may be about an offset that was asked for earlier: of this
            // error alone the client does not tell.
            ClientTrouble::OutOfRange if lane.troubles < 2 => return,
            ClientTrouble::Corrupt(what) if lane.troubles < MOST_CORRUPT => {
                tracing::warn!(partition = %lane.partition, offset, what, "asking for the records again");
                lane.not_before = Some(now + CORRUPT_WAIT);
                return;
            }
            ClientTrouble::Truncated {
                end_offset: Some(end_offset),
            } => ReadError::Truncated { offset, end_offset },
            // Nothing better is known of a truncation without its end.
            ClientTrouble::OutOfRange | ClientTrouble::Truncated { end_offset: None } => {
                ReadError::OutOfRange {
                    offset,
                    log_start: -1,
                    end_offset: -1,
                }
            }
            ClientTrouble::NotAuthorized => ReadError::NotAuthorized {
                topic: lane.partition.shared_topic(),
            },
            ClientTrouble::Corrupt(what) => ReadError::Corrupt {
                offset,
                // librdkafka does not say.
                broker: None,
                what,
            },
            ClientTrouble::Refused { code, name } => ReadError::Refused {
                code,
                name: name.into(),
            },
        };
        lane.trouble = Trouble::Untold(error);
    }
}

/// Offset of the first record of a batch that was not handed over.
fn first_left(batch: &Batch) -> i64 {
    batch
        .entries
        .get(batch.cursor)
        .map_or(batch.next_offset, |entry| entry.offset)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::{Clock, Coarse};
    use crate::record::Entry;

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("orders", number)
    }

    fn from(number: i32, epoch: u64, offset: i64) -> ReadFrom {
        ReadFrom {
            partition: partition(number),
            epoch: AssignmentEpoch(epoch),
            offset,
            until: None,
            paused: false,
        }
    }

    fn batch(epoch: u64, offsets: std::ops::Range<i64>) -> Batch {
        Batch {
            partition: partition(0),
            epoch: AssignmentEpoch(epoch),
            bytes: Bytes::new(),
            entries: offsets
                .clone()
                .map(|offset| Entry {
                    offset,
                    ..Entry::default()
                })
                .collect(),
            cursor: 0,
            next_offset: offsets.end,
            end_offset: -1,
            log_start: -1,
            fetched_at: Coarse::ZERO,
        }
    }

    /// What the client is told.
    fn told(lanes: &mut Lanes, now: Instant) -> (Vec<i32>, Vec<(i32, i64)>) {
        let changes = lanes.changes(now);
        (
            changes
                .leave
                .iter()
                .map(TopicPartition::partition)
                .collect(),
            changes
                .read
                .iter()
                .map(|(partition, offset)| (partition.partition(), *offset))
                .collect(),
        )
    }

    const NOTHING: (Vec<i32>, Vec<(i32, i64)>) = (Vec::new(), Vec::new());
    const ONE: AssignmentEpoch = AssignmentEpoch(1);

    #[test]
    fn a_rewind_leaves_the_partition_and_reads_it_from_there() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 7));
        assert_eq!(told(&mut lanes, now), (vec![], vec![(0, 7)]));
        assert_eq!(told(&mut lanes, now), NOTHING);
        lanes.took(ONE, 100, -1);
        lanes.rewind(ONE, 50, None);
        // Nothing of what the queue still has is taken meanwhile.
        assert!(matches!(lanes.turn(ONE), Turn::Nothing));
        assert_eq!(told(&mut lanes, now), (vec![0], vec![(0, 50)]));
        assert!(matches!(lanes.turn(ONE), Turn::Take { position: 50, .. }));
    }

    #[test]
    fn a_partition_held_back_is_left_and_read_when_its_time_has_come() {
        let now = Clock::manual().now();
        let later = now + Duration::from_secs(2);
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 7));
        told(&mut lanes, now);
        lanes.rewind(ONE, 7, Some(later));
        assert_eq!(told(&mut lanes, now), (vec![0], vec![]));
        assert_eq!(lanes.next_moment(), Some(later));
        assert_eq!(told(&mut lanes, later), (vec![], vec![(0, 7)]));
        assert_eq!(lanes.next_moment(), None);
    }

    #[test]
    fn a_paused_partition_is_left_and_goes_on_at_the_first_record_that_was_not_handed_over() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 0));
        told(&mut lanes, now);
        lanes.took(ONE, 20, -1);
        let mut given = batch(1, 0..10);
        given.cursor = 3;
        assert!(lanes.put_back(batch(1, 10..20)).is_none());
        assert!(lanes.put_back(given).is_none());
        lanes.set_paused(ONE, true);
        assert_eq!(told(&mut lanes, now), (vec![0], vec![]));
        // One that the worker still had.
        lanes.set_paused(ONE, false);
        assert_eq!(told(&mut lanes, now), (vec![], vec![(0, 3)]));
    }

    #[test]
    fn batches_of_before_a_rewind_and_of_other_epochs_are_not_taken_back() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 0));
        told(&mut lanes, now);
        lanes.took(ONE, 10, -1);
        lanes.rewind(ONE, 5, None);
        assert!(lanes.put_back(batch(1, 0..10)).is_some());
        assert!(lanes.put_back(batch(2, 0..5)).is_some());
    }

    #[test]
    fn the_same_partition_under_a_new_epoch_replaces_the_old() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 0));
        told(&mut lanes, now);
        lanes.start(from(0, 2, 90));
        let changes = lanes.changes(now);
        assert_eq!(changes.leave, [partition(0)]);
        assert_eq!(changes.read, [(partition(0), 90)]);
        assert_eq!(
            changes.forget,
            [],
            "it is still read, so it keeps its queue"
        );
        lanes.stop(AssignmentEpoch(2));
        assert_eq!(lanes.changes(now).forget, [partition(0)]);
        assert_eq!(lanes.len(), 0);
    }

    #[test]
    fn an_offset_that_is_not_there_is_asked_for_once_more_before_it_is_told() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 1_000));
        told(&mut lanes, now);
        lanes.has_trouble(ONE, ClientTrouble::OutOfRange, now);
        assert_eq!(told(&mut lanes, now), (vec![0], vec![(0, 1_000)]));
        lanes.has_trouble(ONE, ClientTrouble::OutOfRange, now);
        assert!(matches!(
            lanes.turn(ONE),
            Turn::Failed(1_000, ReadError::OutOfRange { offset: 1_000, .. })
        ));
        assert_eq!(told(&mut lanes, now), (vec![0], vec![]));
        assert!(matches!(lanes.turn(ONE), Turn::Nothing), "told once");
        lanes.rewind(ONE, 8, None);
        assert_eq!(told(&mut lanes, now), (vec![], vec![(0, 8)]));
        // With something taken in between it is another trouble.
        lanes.has_trouble(ONE, ClientTrouble::OutOfRange, now);
        told(&mut lanes, now);
        lanes.took(ONE, 9, -1);
        lanes.has_trouble(ONE, ClientTrouble::OutOfRange, now);
        assert_eq!(told(&mut lanes, now), (vec![0], vec![(0, 9)]));
    }

    #[test]
    fn damaged_records_are_asked_for_three_times() {
        let clock = Clock::manual();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 5));
        for _ in 1..MOST_CORRUPT {
            assert_eq!(told(&mut lanes, clock.now()).1, [(0, 5)]);
            lanes.has_trouble(ONE, ClientTrouble::Corrupt("crc".into()), clock.now());
            assert_eq!(told(&mut lanes, clock.now()), (vec![0], vec![]));
            clock.advance(CORRUPT_WAIT);
        }
        assert_eq!(told(&mut lanes, clock.now()).1, [(0, 5)]);
        lanes.has_trouble(ONE, ClientTrouble::Corrupt("crc".into()), clock.now());
        assert!(matches!(
            lanes.turn(ONE),
            Turn::Failed(5, ReadError::Corrupt { offset: 5, .. })
        ));
    }

    #[test]
    fn a_truncation_is_told_at_once_since_reading_on_would_hide_it() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 50));
        told(&mut lanes, now);
        let end_offset = Some(40);
        lanes.has_trouble(ONE, ClientTrouble::Truncated { end_offset }, now);
        assert!(matches!(
            lanes.turn(ONE),
            Turn::Failed(
                50,
                ReadError::Truncated {
                    offset: 50,
                    end_offset: 40
                }
            )
        ));
    }

    #[test]
    fn nothing_is_read_past_until_and_an_end_reached_already_is_told_once() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(ReadFrom {
            until: Some(5),
            ..from(0, 1, 5)
        });
        assert_eq!(told(&mut lanes, now), NOTHING);
        assert!(matches!(lanes.turn(ONE), Turn::Empty(_, 5)));
        assert!(matches!(lanes.turn(ONE), Turn::Nothing));
        lanes.rewind(ONE, 4, None);
        assert_eq!(told(&mut lanes, now), (vec![], vec![(0, 4)]));
        lanes.took(ONE, 5, -1);
        assert_eq!(told(&mut lanes, now), (vec![0], vec![]));
        assert!(
            matches!(lanes.turn(ONE), Turn::Nothing),
            "told by its records"
        );
    }

    #[test]
    fn an_offset_above_until_is_read_since_the_log_may_have_lost_it() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(ReadFrom {
            until: Some(5),
            ..from(0, 1, 9)
        });
        assert_eq!(told(&mut lanes, now), (vec![], vec![(0, 9)]));
        lanes.has_trouble(ONE, ClientTrouble::OutOfRange, now);
        lanes.has_trouble(ONE, ClientTrouble::OutOfRange, now);
        assert!(matches!(
            lanes.turn(ONE),
            Turn::Failed(9, ReadError::OutOfRange { .. })
        ));
    }

    #[test]
    fn a_moment_that_has_come_is_not_waited_for_again_where_nothing_is_read_at_it() {
        let now = Clock::manual().now();
        let later = now + Duration::from_secs(2);
        let mut lanes = Lanes::default();
        lanes.start(ReadFrom {
            until: Some(5),
            ..from(0, 1, 3)
        });
        lanes.rewind(ONE, 5, Some(later));
        assert_eq!(told(&mut lanes, now), NOTHING);
        assert_eq!(lanes.next_moment(), Some(later));
        assert_eq!(told(&mut lanes, later), NOTHING);
        assert_eq!(lanes.next_moment(), None);
    }

    #[test]
    fn turns_go_round_and_what_is_put_back_goes_to_the_end() {
        let mut lanes = Lanes::default();
        for number in 0..3_u8 {
            lanes.start(from(number.into(), u64::from(number) + 1, 0));
        }
        let turns: Vec<u64> = (0..4).map(|_| lanes.next_turn().unwrap().0).collect();
        assert_eq!(turns, [1, 2, 3, 1]);
        lanes.took(AssignmentEpoch(2), 10, -1);
        assert!(lanes.put_back(batch(2, 0..10)).is_none());
        let turns: Vec<u64> = (0..3).map(|_| lanes.next_turn().unwrap().0).collect();
        assert_eq!(turns, [3, 1, 2]);
    }

    #[test]
    fn another_client_reads_everything_anew_from_where_it_stands() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 0));
        lanes.start(from(1, 2, 3));
        told(&mut lanes, now);
        lanes.took(ONE, 44, -1);
        lanes.stop(AssignmentEpoch(2));
        lanes.forget_client();
        assert_eq!(told(&mut lanes, now), (vec![], vec![(0, 44)]));
    }

    #[test]
    fn what_the_client_refuses_is_wanted_again_later() {
        let now = Clock::manual().now();
        let mut lanes = Lanes::default();
        lanes.start(from(0, 1, 0));
        let changes = lanes.changes(now);
        lanes.refused(&changes, now);
        assert_eq!(told(&mut lanes, now), NOTHING);
        assert_eq!(told(&mut lanes, now + REFUSED_WAIT), (vec![], vec![(0, 0)]));
    }
}
