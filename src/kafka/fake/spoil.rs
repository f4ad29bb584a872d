//! What a [`Fault`] does to an answer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{TopicName, fetch_response};
use uuid::Uuid;

use super::{Answer, Body, other_name};
use crate::testing::fake::release::Request;
use crate::testing::fake::script::Fault;
use crate::testing::fake::state::State;

/// Partition numbers of answers that went astray begin here.
const ASTRAY: i32 = 1_000;

/// Where the CRC of a batch begins to count, and what its length leaves out.
const UNCOUNTED: usize = 12;

impl Answer {
    /// Changes what the answer says; faults of its bytes and of the connection
    /// change nothing here.
    pub(crate) fn spoil(&mut self, fault: Fault, state: &State) {
        match fault {
            Fault::Error(code) => self.fail(code),
            Fault::PartitionError(code) => self.fail_parts(code),
            Fault::CorruptRecords => self.change_records(|_, _, records| turn_a_bit(records)),
            Fault::CutRecords => self.change_records(|_, _, records| {
                let first = first_batch(records);
                records.slice(..first / 2)
            }),
            Fault::OldRecords => self.change_records(|_, _, records| old_message(records)),
            Fault::EarlierRecords => self.change_records(|topic, partition, records| {
                let name = match topic {
                    Named::By(name) => Some(name.as_str()),
                    Named::Id(id) => state.name_of(*id),
                };
                let log = name.and_then(|name| state.log(name, partition));
                let earlier = log.and_then(|log| log.before(base_offset(records)));
                earlier.map_or_else(|| records.clone(), |batch| batch.bytes.clone())
            }),
            Fault::WrongTopic => self.rename(),
            Fault::WrongPartition => self.renumber(),
            Fault::Twice => self.double(),
            Fault::Nothing => self.clear(),
            Fault::Throttle(time) => self.throttle(time),
            Fault::Garbage
            | Fault::ScrambledBody
            | Fault::HalfAnswer
            | Fault::FrameOf(_)
            | Fault::WrongNumber
            | Fault::Close
            | Fault::Stall
            | Fault::Drip(_)
            | Fault::EndlessArray => {}
        }
    }

    /// Changes the bytes of the encoded answer; faults of the connection change
    /// nothing here.
    pub(crate) fn mangle(&self, fault: Fault, bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
        match fault {
            Fault::Garbage => random.fill(bytes),
            Fault::ScrambledBody => {
                let header = self.header_len();
                // Enough for a length that leads nowhere.
                bytes.resize(bytes.len().max(header + 16), 0);
                if let Some(body) = bytes.get_mut(header..) {
                    random.fill(body);
                }
            }
            Fault::WrongNumber => {
                let wrong = self.head.correlation.wrapping_add(1_000_000);
                if let Some(number) = bytes.first_chunk_mut() {
                    *number = wrong.to_be_bytes();
                }
            }
            Fault::EndlessArray => {
                let at = self.header_len() + self.before_array();
                let length: &[u8] = if self.is_flexible() {
                    &[0xff, 0xff, 0xff, 0xff, 0x0f]
                } else {
                    &[0x7f, 0xff, 0xff, 0xff]
                };
                bytes.resize(bytes.len().max(at + length.len()), 0);
                if let Some(place) = bytes.get_mut(at..at + length.len()) {
                    place.copy_from_slice(length);
                }
            }
            _ => {}
        }
    }

    /// Bytes between the header and the first array (or string, where there is
    /// none).
    fn before_array(&self) -> usize {
        let version = self.head.version;
        let throttle_since = |first: i16| if version >= first { 4 } else { 0 };
        match self.head.request {
            Request::Fetch if version >= 7 => 10,
            Request::ListOffsets | Request::OffsetForLeaderEpoch => throttle_since(2),
            Request::Metadata | Request::OffsetCommit | Request::OffsetFetch => throttle_since(3),
            Request::FindCoordinator if version < 4 => throttle_since(1) + 2,
            Request::Fetch | Request::FindCoordinator => 4,
            Request::ApiVersions => 2,
        }
    }

    fn fail(&mut self, code: i16) {
        let version = self.head.version;
        match &mut self.body {
            Body::Fetch(body) if version >= 7 => {
                body.error_code = code;
                body.responses.clear();
            }
            Body::OffsetFetch(body) if (2..8).contains(&version) => body.error_code = code,
            Body::OffsetFetch(body) if version >= 8 => {
                for group in &mut body.groups {
                    group.error_code = code;
                    group.topics.clear();
                }
            }
            Body::Metadata(body) => {
                for topic in &mut body.topics {
                    topic.error_code = code;
                    topic.partitions.clear();
                }
            }
            Body::ApiVersions(body) => body.error_code = code,
            _ => self.fail_parts(code),
        }
    }

    fn fail_parts(&mut self, code: i16) {
        let version = self.head.version;
        match &mut self.body {
            Body::Fetch(body) => {
                for topic in &mut body.responses {
                    for partition in &mut topic.partitions {
                        let index = partition.partition_index;
                        *partition = super::refused(index, code);
                    }
                }
            }
            Body::ListOffsets(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.error_code = code;
                        partition.offset = -1;
                    }
                }
            }
            Body::Metadata(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.error_code = code;
                        partition.leader_id.0 = -1;
                    }
                }
            }
            Body::OffsetCommit(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.error_code = code;
                    }
                }
            }
            Body::OffsetFetch(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.error_code = code;
                        partition.committed_offset = -1;
                    }
                }
                for topic in body.groups.iter_mut().flat_map(|group| &mut group.topics) {
                    for partition in &mut topic.partitions {
                        partition.error_code = code;
                        partition.committed_offset = -1;
                    }
                }
            }
            Body::FindCoordinator(body) if version < 4 => body.error_code = code,
            Body::FindCoordinator(body) => {
                for coordinator in &mut body.coordinators {
                    coordinator.error_code = code;
                }
            }
            Body::ApiVersions(body) => body.error_code = code,
            Body::LeaderEpoch(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.error_code = code;
                    }
                }
            }
        }
    }

    /// Changes the records of the first partition that has some.
    fn change_records(&mut self, change: impl FnOnce(&Named, i32, &Bytes) -> Bytes) {
        let is_by_id = self.head.version >= 13;
        let Body::Fetch(body) = &mut self.body else {
            return;
        };
        for topic in &mut body.responses {
            let named = if is_by_id {
                Named::Id(topic.topic_id)
            } else {
                Named::By(topic.topic.clone())
            };
            let has_records = |partition: &&mut fetch_response::PartitionData| {
                let records = partition.records.as_ref();
                records.is_some_and(|records| !records.is_empty())
            };
            let found = topic.partitions.iter_mut().find(has_records);
            if let Some(partition) = found {
                let index = partition.partition_index;
                let changed = partition
                    .records
                    .as_ref()
                    .map(|records| change(&named, index, records));
                partition.records = changed;
                return;
            }
        }
    }

    fn rename(&mut self) {
        let by_id = Uuid::from_u128(0xbad);
        let rename = |name: &mut TopicName| *name = TopicName(other_name(name));
        let version = self.head.version;
        match &mut self.body {
            Body::Fetch(body) => {
                for topic in &mut body.responses {
                    if version >= 13 {
                        topic.topic_id = by_id;
                    } else {
                        rename(&mut topic.topic);
                    }
                }
            }
            Body::ListOffsets(body) => {
                let names = body.topics.iter_mut().map(|topic| &mut topic.name);
                names.for_each(rename);
            }
            Body::Metadata(body) => {
                let names = body
                    .topics
                    .iter_mut()
                    .filter_map(|topic| topic.name.as_mut());
                names.for_each(rename);
            }
            Body::OffsetFetch(body) if version < 10 => {
                let groups = body.groups.iter_mut().flat_map(|group| &mut group.topics);
                groups.map(|topic| &mut topic.name).for_each(rename);
                let names = body.topics.iter_mut().map(|topic| &mut topic.name);
                names.for_each(rename);
            }
            Body::LeaderEpoch(body) => {
                let names = body.topics.iter_mut().map(|topic| &mut topic.topic);
                names.for_each(rename);
            }
            _ => {}
        }
    }

    fn renumber(&mut self) {
        match &mut self.body {
            Body::Fetch(body) => {
                for topic in &mut body.responses {
                    for partition in &mut topic.partitions {
                        partition.partition_index += ASTRAY;
                    }
                }
            }
            Body::ListOffsets(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.partition_index += ASTRAY;
                    }
                }
            }
            Body::Metadata(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.partition_index += ASTRAY;
                    }
                }
            }
            Body::OffsetFetch(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.partition_index += ASTRAY;
                    }
                }
                for topic in body.groups.iter_mut().flat_map(|group| &mut group.topics) {
                    for partition in &mut topic.partitions {
                        partition.partition_index += ASTRAY;
                    }
                }
            }
            Body::LeaderEpoch(body) => {
                for topic in &mut body.topics {
                    for partition in &mut topic.partitions {
                        partition.partition += ASTRAY;
                    }
                }
            }
            Body::OffsetCommit(_) | Body::FindCoordinator(_) | Body::ApiVersions(_) => {}
        }
    }

    fn double(&mut self) {
        fn twice<T: Clone>(all: &mut Vec<T>) {
            all.extend(all.clone());
        }
        match &mut self.body {
            Body::Fetch(body) => {
                for topic in &mut body.responses {
                    twice(&mut topic.partitions);
                }
                twice(&mut body.responses);
            }
            Body::ListOffsets(body) => twice(&mut body.topics),
            Body::Metadata(body) => {
                for topic in &mut body.topics {
                    twice(&mut topic.partitions);
                }
                twice(&mut body.topics);
                twice(&mut body.brokers);
            }
            Body::OffsetCommit(body) => twice(&mut body.topics),
            Body::OffsetFetch(body) => {
                twice(&mut body.topics);
                twice(&mut body.groups);
            }
            Body::FindCoordinator(body) => twice(&mut body.coordinators),
            Body::ApiVersions(body) => twice(&mut body.api_keys),
            Body::LeaderEpoch(body) => twice(&mut body.topics),
        }
    }

    fn clear(&mut self) {
        match &mut self.body {
            Body::Fetch(body) => body.responses.clear(),
            Body::ListOffsets(body) => body.topics.clear(),
            Body::Metadata(body) => {
                body.topics.clear();
                body.brokers.clear();
            }
            Body::OffsetCommit(body) => body.topics.clear(),
            Body::OffsetFetch(body) => {
                body.topics.clear();
                body.groups.clear();
            }
            Body::FindCoordinator(body) => body.coordinators.clear(),
            Body::ApiVersions(body) => body.api_keys.clear(),
            Body::LeaderEpoch(body) => body.topics.clear(),
        }
    }

    fn throttle(&mut self, time: Duration) {
        let version = self.head.version;
        let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        match &mut self.body {
            Body::Fetch(body) => body.throttle_time_ms = millis,
            Body::ListOffsets(body) if version >= 2 => body.throttle_time_ms = millis,
            Body::Metadata(body) if version >= 3 => body.throttle_time_ms = millis,
            Body::OffsetCommit(body) if version >= 3 => body.throttle_time_ms = millis,
            Body::OffsetFetch(body) if version >= 3 => body.throttle_time_ms = millis,
            Body::FindCoordinator(body) if version >= 1 => body.throttle_time_ms = millis,
            Body::ApiVersions(body) if version >= 1 => body.throttle_time_ms = millis,
            Body::LeaderEpoch(body) if version >= 2 => body.throttle_time_ms = millis,
            _ => {}
        }
    }
}

/// How an answer names a topic.
enum Named {
    By(TopicName),
    Id(Uuid),
}

fn base_offset(records: &[u8]) -> i64 {
    records
        .first_chunk()
        .map_or(0, |at| i64::from_be_bytes(*at))
}

/// Bytes of the first batch.
fn first_batch(records: &[u8]) -> usize {
    let length = records.get(8..).and_then(|rest| rest.first_chunk());
    let length = length.map_or(0, |length| i32::from_be_bytes(*length));
    let length = usize::try_from(length).unwrap_or(0) + UNCOUNTED;
    length.min(records.len())
}

fn turn_a_bit(records: &Bytes) -> Bytes {
    let last = first_batch(records).saturating_sub(1);
    let mut turned = BytesMut::from(&records[..]);
    if let Some(byte) = turned.get_mut(last) {
        *byte ^= 0x10;
    }
    turned.freeze()
}

/// A message of format 1 at the same offset.
fn old_message(records: &Bytes) -> Bytes {
    const VALUE: &[u8] = b"old";
    let mut tail = vec![1, 0];
    tail.extend(super::FIRST_TIMESTAMP.to_be_bytes());
    tail.extend((-1_i32).to_be_bytes());
    tail.extend(3_i32.to_be_bytes());
    tail.extend(VALUE);
    let mut crc = flate2::Crc::new();
    crc.update(&tail);
    let mut message = base_offset(records).to_be_bytes().to_vec();
    let length = i32::try_from(tail.len() + 4).unwrap_or(0);
    message.extend(length.to_be_bytes());
    message.extend(crc.sum().to_be_bytes());
    message.extend(tail);
    message.into()
}
