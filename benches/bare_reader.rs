//! The least that reading Kafka's protocol costs: the line that every client is
//! measured against, ours first.
//!
//! One blocking connection per thread, whole fetches, the next request sent
//! before the answer in hand is walked, CRC checked, every payload touched. No
//! group, no rebalance, no commit, no retry, no compression, one broker: what
//! is left out is what a client is for.
//!
//! ```text
//! cargo bench --bench bare_reader -- --bootstrap localhost:9092 --topic T --threads 2 --count 8000000
//! ```
//!
//! Reads every partition from its start until `count` records were seen, and
//! prints one line in the form of `keepup perf --json`.

#![allow(
    missing_docs,
    clippy::pedantic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::allow_attributes,
    reason = "a plain program that may stop at the first problem"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    FetchRequest, FetchResponse, MetadataRequest, MetadataResponse, RequestHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

const FETCH: (i16, i16) = (1, 11);
const METADATA: (i16, i16) = (3, 7);
const ANSWER: i32 = 2 * 1024 * 1024;

fn main() {
    let options = Options::parse();
    let begin = Instant::now();
    let partitions = options.partitions();
    let total = AtomicU64::new(0);
    let spans: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|thread| {
                let mine: Vec<i32> = (0..partitions)
                    .filter(|partition| partition % options.threads == thread)
                    .collect();
                let (options, total) = (&options, &total);
                scope.spawn(move || read(options, &mine, total))
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|it| it.join().unwrap())
            .collect()
    });
    let first = spans.iter().map(|span| span.first).min().expect("records");
    let last = spans.iter().map(|span| span.last).max().expect("records");
    let cpu_first = spans.iter().map(|span| span.cpu_first).min().unwrap();
    let cpu_last = spans.iter().map(|span| span.cpu_last).max().unwrap();
    let records = total.load(Ordering::Relaxed);
    let seconds = (last - first).as_secs_f64();
    let cpu = (cpu_last - cpu_first).as_secs_f64();
    std::hint::black_box(spans.iter().fold(0, |sum, span| sum ^ span.sum));
    println!(
        "{}",
        serde_json::json!({
            "peer": "bare-reader",
            "records": records,
            "seconds": seconds,
            "start_s": (first - begin).as_secs_f64(),
            "records_per_s": (records as f64 / seconds) as u64,
            "cpu_run_s": cpu,
            "cpu_ns_per_record": (cpu * 1e9 / records as f64) as u64,
            "peak_rss_mib": peak_rss_mib(),
            "workers": options.threads,
        })
    );
}

struct Options {
    bootstrap: String,
    topic: String,
    threads: i32,
    count: u64,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self {
            bootstrap: "localhost:9092".to_owned(),
            topic: String::new(),
            threads: 2,
            count: u64::MAX,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().expect("an option has a value");
            match name.as_str() {
                "--bench" => {} // cargo adds it
                "--bootstrap" => options.bootstrap = value(),
                "--topic" => options.topic = value(),
                "--threads" => options.threads = value().parse().expect("a number"),
                "--count" => options.count = value().parse().expect("a number"),
                other => panic!("unknown option {other}"),
            }
        }
        assert!(!options.topic.is_empty(), "--topic is missing");
        options
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.bootstrap).expect("a broker");
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn topic(&self) -> TopicName {
        TopicName(StrBytes::from_string(self.topic.clone()))
    }

    fn partitions(&self) -> i32 {
        let mut stream = self.connect();
        let topic = MetadataRequestTopic::default().with_name(Some(self.topic()));
        let request = MetadataRequest::default().with_topics(Some(vec![topic]));
        send(&mut stream, METADATA, &request);
        let answer: MetadataResponse = receive(&mut stream, METADATA.1, &mut Bytes::new());
        assert_eq!(answer.brokers.len(), 1, "this reads from one broker only");
        i32::try_from(answer.topics[0].partitions.len()).unwrap()
    }
}

/// What one thread saw.
struct Span {
    first: Instant,
    last: Instant,
    cpu_first: Duration,
    cpu_last: Duration,
    sum: u64,
}

fn read(options: &Options, partitions: &[i32], total: &AtomicU64) -> Option<Span> {
    if partitions.is_empty() {
        return None;
    }
    let mut stream = options.connect();
    let mut offsets: Vec<(i32, i64)> = partitions.iter().map(|&it| (it, 0)).collect();
    let ask = |stream: &mut TcpStream, offsets: &[(i32, i64)]| {
        let partitions = offsets.iter().map(|&(partition, offset)| {
            FetchPartition::default()
                .with_partition(partition)
                .with_fetch_offset(offset)
                .with_partition_max_bytes(ANSWER)
        });
        let topic = FetchTopic::default()
            .with_topic(options.topic())
            .with_partitions(partitions.collect());
        let request = FetchRequest::default()
            .with_max_wait_ms(250)
            .with_min_bytes(1)
            .with_max_bytes(ANSWER)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        send(stream, FETCH, &request);
    };
    let mut span: Option<Span> = None;
    let mut buffer = Bytes::new();
    ask(&mut stream, &offsets);
    while total.load(Ordering::Relaxed) < options.count {
        let answer: FetchResponse = receive(&mut stream, FETCH.1, &mut buffer);
        let partitions = &answer.responses[0].partitions;
        for partition in partitions {
            assert_eq!(partition.error_code, 0);
            let records = partition.records.as_deref().unwrap_or_default();
            let mut rest = records;
            while let Some((batch, tail)) = split_batch(rest) {
                let next = number(batch, 0) + i64::from(small(batch, 23)) + 1;
                let known = offsets
                    .iter_mut()
                    .find(|it| it.0 == partition.partition_index);
                known.expect("a partition that was asked for").1 = next;
                rest = tail;
            }
        }
        // Who got records goes last.
        offsets.rotate_left(1);
        ask(&mut stream, &offsets);
        let mut seen = 0;
        let mut sum = 0;
        for partition in partitions {
            let mut rest = partition.records.as_deref().unwrap_or_default();
            while let Some((batch, tail)) = split_batch(rest) {
                let crc = small(batch, 17).cast_unsigned();
                assert_eq!(crc32c::crc32c(&batch[21..]), crc, "a batch is damaged");
                assert_eq!(batch[22] & 7, 0, "compressed records are not read");
                seen += walk(&batch[61..], small(batch, 57), &mut sum);
                rest = tail;
            }
        }
        total.fetch_add(seen, Ordering::Relaxed);
        if seen > 0 {
            let (now, cpu) = (Instant::now(), cpu());
            let span = span.get_or_insert(Span {
                first: now,
                last: now,
                cpu_first: cpu,
                cpu_last: cpu,
                sum: 0,
            });
            (span.last, span.cpu_last) = (now, cpu);
            span.sum ^= sum;
        }
    }
    span
}

/// The wire batch in front, if it is whole, and what follows it.
fn split_batch(set: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = set.get(8..12)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize + 12;
    set.split_at_checked(length)
}

fn walk(mut records: &[u8], count: i32, sum: &mut u64) -> u64 {
    for _ in 0..count {
        let length = varint(&mut records);
        let (mut record, tail) = records.split_at(length.cast_unsigned() as usize);
        records = tail;
        record = &record[1..];
        varint(&mut record); // timestamp
        varint(&mut record); // offset
        let key = varint(&mut record).max(0).cast_unsigned() as usize;
        record = &record[key..];
        let length = varint(&mut record).max(0).cast_unsigned() as usize;
        let value = &record[..length];
        *sum = sum.wrapping_add(length as u64);
        if let Some(first) = value.first_chunk() {
            *sum ^= u64::from_le_bytes(*first);
        }
    }
    u64::from(count.cast_unsigned())
}

fn varint(bytes: &mut &[u8]) -> i64 {
    let (mut value, mut shift) = (0_u64, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return (value >> 1).cast_signed() ^ -(value & 1).cast_signed();
        }
    }
}

fn number(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn small(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn send(stream: &mut TcpStream, (key, version): (i16, i16), request: &impl Encodable) {
    let mut frame = vec![0; 4];
    RequestHeader::default()
        .with_request_api_key(key)
        .with_request_api_version(version)
        .with_client_id(Some(StrBytes::from_static_str("bare-reader")))
        .encode(&mut frame, 1)
        .unwrap();
    request.encode(&mut frame, version).unwrap();
    let length = u32::try_from(frame.len() - 4).unwrap();
    frame[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&frame).unwrap();
}

/// Reads an answer into `buffer`, whose memory is used again where the answer
/// before is gone.
fn receive<T: Decodable>(stream: &mut TcpStream, version: i16, buffer: &mut Bytes) -> T {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let length = u32::from_be_bytes(length) as usize;
    let mut frame = Vec::from(std::mem::take(buffer));
    frame.resize(length.max(frame.len()), 0);
    stream.read_exact(&mut frame[..length]).unwrap();
    *buffer = Bytes::from(frame);
    let mut body = buffer.slice(4..length);
    T::decode(&mut body, version).unwrap()
}

/// CPU time of the process so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.map_or(0, |kib| kib.parse::<u64>().unwrap() / 1024)
}
