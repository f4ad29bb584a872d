//! Records written byte for byte: what Kafka's format can say, and no client library would.
//!
//! librdkafka takes header names of UTF-8 only, and gives a record that claims no time the present one. The broker
//! takes whatever its format allows, and so do the programs of others.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::kafka::Kafka;
use super::{SOON, wait_until};

/// A record, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RawRecord {
    pub(crate) timestamp: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A request to produce: its key and the oldest version that brokers since 4.0 take, which has no tagged fields yet.
const PRODUCE: (i16, i16) = (0, 3);

impl Kafka {
    /// Writes `records` as one batch that counts its times from `base_timestamp`, and gives the first one's offset.
    /// For clusters of one broker: it goes to the first that is known.
    pub(crate) fn write_raw(
        &self,
        topic: &str,
        partition: i32,
        base_timestamp: i64,
        records: &[RawRecord],
    ) -> i64 {
        let request = produce(topic, partition, &batch(base_timestamp, records));
        // A leader that has only just been made may not know it yet.
        wait_until(SOON, "the broker to take a batch", || {
            match self.exchange(&request) {
                Ok((0, offset)) => Ok(offset),
                Ok((code, _)) => Err(format!("error code {code}")),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    /// Sends one request and reads its answer: error code and offset.
    fn exchange(&self, request: &[u8]) -> std::io::Result<(i16, i64)> {
        let mut stream = TcpStream::connect(self.bootstrap())?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        stream.write_all(request)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = usize::try_from(i32::from_be_bytes(length)).expect("it is positive");
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        // One topic, one partition, and then: error code, offset, log append time, throttle time.
        let tail = &answer[length - 22..];
        let code = i16::from_be_bytes(tail[..2].try_into().expect("two bytes"));
        let offset = i64::from_be_bytes(tail[2..10].try_into().expect("eight bytes"));
        Ok((code, offset))
    }
}

fn produce(topic: &str, partition: i32, batch: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(PRODUCE.0.to_be_bytes());
    body.extend(PRODUCE.1.to_be_bytes());
    body.extend(1_i32.to_be_bytes()); // correlation id
    body.extend((-1_i16).to_be_bytes()); // no client id
    body.extend((-1_i16).to_be_bytes()); // no transactional id
    body.extend((-1_i16).to_be_bytes()); // all in-sync replicas
    body.extend(10_000_i32.to_be_bytes()); // timeout
    body.extend(1_i32.to_be_bytes()); // topics
    body.extend(i16::try_from(topic.len()).expect("short").to_be_bytes());
    body.extend(topic.as_bytes());
    body.extend(1_i32.to_be_bytes()); // partitions
    body.extend(partition.to_be_bytes());
    body.extend(length(batch).to_be_bytes());
    body.extend(batch);
    let mut request = length(&body).to_be_bytes().to_vec();
    request.extend(body);
    request
}

/// A batch of message format 2, without compression.
fn batch(base_timestamp: i64, records: &[RawRecord]) -> Vec<u8> {
    let count = i32::try_from(records.len()).expect("not so many");
    let newest = records.iter().map(|record| record.timestamp).max();
    let mut tail = Vec::new();
    tail.extend(0_i16.to_be_bytes()); // attributes
    tail.extend((count - 1).to_be_bytes()); // last offset
    tail.extend(base_timestamp.to_be_bytes());
    tail.extend(newest.unwrap_or(base_timestamp).to_be_bytes());
    tail.extend((-1_i64).to_be_bytes()); // producer id
    tail.extend((-1_i16).to_be_bytes()); // producer epoch
    tail.extend((-1_i32).to_be_bytes()); // sequence number
    tail.extend(count.to_be_bytes());
    for (delta, record) in (0..).zip(records) {
        let mut body = vec![0]; // attributes
        varint(record.timestamp.wrapping_sub(base_timestamp), &mut body);
        varint(delta, &mut body);
        optional(record.key.as_deref(), &mut body);
        optional(record.value.as_deref(), &mut body);
        varint(length(&record.headers).into(), &mut body);
        for (name, value) in &record.headers {
            optional(Some(name), &mut body);
            optional(value.as_deref(), &mut body);
        }
        varint(length(&body).into(), &mut tail);
        tail.extend(body);
    }
    let mut batch = 0_i64.to_be_bytes().to_vec(); // base offset: the broker's to say
    batch.extend((length(&tail) + 9).to_be_bytes());
    batch.extend((-1_i32).to_be_bytes()); // leader epoch
    batch.push(2); // message format
    batch.extend(crc32c::crc32c(&tail).to_be_bytes());
    batch.extend(tail);
    batch
}

fn length<T>(items: &[T]) -> i32 {
    i32::try_from(items.len()).expect("less than 2 GiB")
}

fn optional(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    varint(bytes.map_or(-1, |bytes| length(bytes).into()), out);
    out.extend(bytes.unwrap_or_default());
}

fn varint(value: i64, out: &mut Vec<u8>) {
    let mut zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while zigzag >= 0x80 {
        out.push(0x80 | u8::try_from(zigzag & 0x7f).expect("seven bits"));
        zigzag >>= 7;
    }
    out.push(u8::try_from(zigzag).expect("seven bits"));
}

/// How many batches without records a partition's files have: what compaction leaves of a producer's last batch, so
/// that the broker still knows its sequence number.
pub(crate) fn empty_batches(directory: &std::path::Path) -> usize {
    let mut empty = 0;
    for file in std::fs::read_dir(directory).expect("a partition has a directory") {
        let path = file.expect("a directory can be read").path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a log can be read");
        let mut rest = bytes.as_slice();
        // Offset and length, then as long as that says; the count of records is the last of the header's 61 bytes.
        while let Some(header) = rest.first_chunk::<61>() {
            let length = i32::from_be_bytes(header[8..12].try_into().expect("four bytes"));
            let count = i32::from_be_bytes(header[57..].try_into().expect("four bytes"));
            empty += usize::from(count == 0);
            let whole = 12 + usize::try_from(length).expect("a length");
            rest = rest.get(whole..).unwrap_or_default();
        }
    }
    empty
}
