//! The least that reading the protocol can cost: one connection per thread,
//! full fetches, the next request sent before the answer is read through, CRCs
//! checked, every record walked. No group, no commit, no errors handled.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{
    ApiKey, BrokerId, FetchRequest, FetchResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use crate::PARTITIONS;
use crate::clients::Task;
use crate::measure::{Measured, Sum};

/// The newest version that names topics.
const FETCH_VERSION: i16 = 12;
/// Larger answers leave the caches, smaller ones cost more requests.
const ANSWER: i32 = 2 * 1024 * 1024;

pub(crate) fn run(task: &Task) {
    let measured = Arc::new(Measured::new());
    let left = Arc::new(AtomicU64::new(task.records));
    let threads: Vec<_> = (0..task.threads)
        .map(|number| {
            let reader = Reader {
                connection: TcpStream::connect(&task.bootstrap).expect("a connection"),
                topic: task.topic.clone(),
                next: (0..PARTITIONS)
                    .filter(|p| usize::try_from(*p).unwrap_or(0) % task.threads == number)
                    .map(|partition| (partition, 0))
                    .collect(),
                first: 0,
                correlation: 0,
                out: BytesMut::new(),
            };
            let (measured, left) = (Arc::clone(&measured), Arc::clone(&left));
            std::thread::Builder::new()
                .spawn(move || reader.read(&measured, &left))
                .expect("a thread")
        })
        .collect();
    let sums: Vec<Sum> = threads
        .into_iter()
        .map(|thread| thread.join().expect("a reader ends"))
        .collect();
    measured.print("bare-reader", task.threads, &sums);
}

struct Reader {
    connection: TcpStream,
    topic: String,
    /// Partition and next offset.
    next: Vec<(i32, i64)>,
    /// Whose turn it is to be first in a request.
    first: usize,
    correlation: i32,
    out: BytesMut,
}

impl Reader {
    fn read(mut self, measured: &Measured, left: &AtomicU64) -> Sum {
        self.connection.set_nodelay(true).expect("a socket option");
        let mut sum = Sum::default();
        self.ask();
        loop {
            let answer = self.answer();
            let sets: Vec<Bytes> = self.advance(answer);
            let more = left.load(Ordering::Relaxed) > 0;
            if more {
                self.ask();
            }
            let before = sum.records;
            if before == 0 && !sets.is_empty() {
                measured.begin();
            }
            for set in sets {
                walk(&set, &mut sum);
            }
            let read = sum.records - before;
            let was = left.fetch_sub(read, Ordering::Relaxed);
            if was <= read || !more {
                // Tell the others, which may be waiting for an answer that has
                // nothing new, to stop as well.
                left.store(0, Ordering::Relaxed);
                return sum;
            }
        }
    }

    fn ask(&mut self) {
        self.correlation += 1;
        self.first += 1;
        let count = self.next.len();
        let partitions = (0..count)
            .map(|turn| self.next[(self.first + turn) % count])
            .map(|(partition, offset)| {
                FetchPartition::default()
                    .with_partition(partition)
                    .with_current_leader_epoch(-1)
                    .with_fetch_offset(offset)
                    .with_partition_max_bytes(ANSWER)
            })
            .collect();
        let topic = FetchTopic::default()
            .with_topic(TopicName(StrBytes::from_string(self.topic.clone())))
            .with_partitions(partitions);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(100)
            .with_min_bytes(1)
            .with_max_bytes(ANSWER)
            .with_isolation_level(1)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let header = RequestHeader::default()
            .with_request_api_key(ApiKey::Fetch as i16)
            .with_request_api_version(FETCH_VERSION)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_static_str("bare")));
        self.out.clear();
        self.out.extend_from_slice(&[0; 4]);
        header.encode(&mut self.out, 2).expect("a header");
        request
            .encode(&mut self.out, FETCH_VERSION)
            .expect("a request");
        let length = u32::try_from(self.out.len() - 4).expect("a short request");
        self.out[..4].copy_from_slice(&length.to_be_bytes());
        self.connection
            .write_all(&self.out)
            .expect("the broker reads");
    }

    fn answer(&mut self) -> FetchResponse {
        let mut length = [0; 4];
        self.connection
            .read_exact(&mut length)
            .expect("the broker answers");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.connection
            .read_exact(&mut frame)
            .expect("the broker answers");
        let mut frame = Bytes::from(frame);
        ResponseHeader::decode(&mut frame, 1).expect("a header");
        FetchResponse::decode(&mut frame, FETCH_VERSION).expect("an answer")
    }

    /// Moves the offsets past what came, by the headers of its batches.
    fn advance(&mut self, answer: FetchResponse) -> Vec<Bytes> {
        let mut sets = Vec::new();
        for topic in answer.responses {
            for partition in topic.partitions {
                assert_eq!(
                    partition.error_code, 0,
                    "the broker refuses to give records"
                );
                let Some(records) = partition.records else {
                    continue;
                };
                let mut last = None;
                let mut rest = &records[..];
                while let Some(batch) = batch(rest) {
                    last = Some(base_offset(batch) + i64::from(number(batch, 23)));
                    rest = &rest[batch.len()..];
                }
                let known = self
                    .next
                    .iter_mut()
                    .find(|(p, _)| *p == partition.partition_index);
                if let (Some((_, next)), Some(last)) = (known, last) {
                    *next = last + 1;
                }
                if last.is_some() {
                    sets.push(records);
                }
            }
        }
        sets
    }
}

/// The first whole batch of a record set.
fn batch(set: &[u8]) -> Option<&[u8]> {
    let length = u32::from_be_bytes(*set.get(8..12)?.first_chunk()?) as usize;
    set.get(..12 + length)
}

fn base_offset(batch: &[u8]) -> i64 {
    i64::from_be_bytes(*batch.first_chunk().expect("a batch has a header"))
}

fn number(batch: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(*batch[at..].first_chunk().expect("a batch has a header"))
}

fn walk(set: &[u8], sum: &mut Sum) {
    let mut rest = set;
    while let Some(batch) = batch(rest) {
        rest = &rest[batch.len()..];
        let crc = number(batch, 17).cast_unsigned();
        assert_eq!(crc32c::crc32c(&batch[21..]), crc, "the batch is damaged");
        assert_eq!(
            batch[22] & 7,
            0,
            "the topic of the benchmark is not compressed"
        );
        let mut body = &batch[61..];
        for _ in 0..number(batch, 57) {
            let length = usize::try_from(varint(&mut body)).expect("a length");
            let (mut record, after) = body.split_at(length);
            body = after;
            record = &record[1..];
            varint(&mut record);
            varint(&mut record);
            let key = varint(&mut record);
            record = &record[usize::try_from(key).unwrap_or(0)..];
            let value = usize::try_from(varint(&mut record)).unwrap_or(0);
            sum.add(&record[..value]);
        }
    }
}

#[inline]
fn varint(bytes: &mut &[u8]) -> i64 {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("a whole record");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}
