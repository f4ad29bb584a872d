//! Writes wire batches as producers and brokers do, so that what reads them
//! can be tested without a broker: every compression, transactions, markers,
//! holes, and every way to get a header wrong.

use std::io::Write;

use super::compression::Codec;

/// A record to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TestRecord {
    pub(super) offset_delta: i32,
    pub(super) timestamp_delta: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A wire batch to be written; [`TestBatch::new`] fills in what seldom matters.
#[derive(Clone, Debug)]
pub(super) struct TestBatch {
    pub(super) base_offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) codec: Option<Codec>,
    pub(super) attributes: u16,
    pub(super) last_offset_delta: i32,
    pub(super) base_timestamp: i64,
    pub(super) max_timestamp: i64,
    pub(super) producer_id: i64,
    pub(super) records: Vec<TestRecord>,
    /// Raw snappy instead of snappy-java's framing.
    pub(super) bare_snappy: bool,
}

impl TestBatch {
    /// A batch of the given records, numbered from `base_offset`.
    pub(super) fn new(base_offset: i64, mut records: Vec<TestRecord>) -> Self {
        for (delta, record) in (0..).zip(&mut records) {
            record.offset_delta = delta;
        }
        Self {
            base_offset,
            leader_epoch: 3,
            codec: None,
            attributes: 0,
            last_offset_delta: i32::try_from(records.len()).unwrap() - 1,
            base_timestamp: 1_700_000_000_000,
            max_timestamp: 1_700_000_009_999,
            producer_id: -1,
            records,
            bare_snappy: false,
        }
    }

    /// `count` records whose values are `value 0` and so on.
    pub(super) fn of(base_offset: i64, count: i64) -> Self {
        let records = (0..count)
            .map(|index| TestRecord {
                key: Some(format!("key {}", base_offset + index).into_bytes()),
                value: Some(format!("value {}", base_offset + index).into_bytes()),
                ..TestRecord::default()
            })
            .collect();
        Self::new(base_offset, records)
    }

    pub(super) fn compressed(mut self, codec: Option<Codec>) -> Self {
        self.codec = codec;
        self
    }

    pub(super) fn transactional(mut self, producer_id: i64) -> Self {
        self.producer_id = producer_id;
        self.attributes |= 0x10;
        self
    }

    /// The marker that ends a transaction.
    pub(super) fn marker(offset: i64, producer_id: i64, commit: bool) -> Self {
        let mut batch = Self::new(
            offset,
            vec![TestRecord {
                key: Some(vec![0, 0, 0, u8::from(commit)]),
                value: Some(vec![0, 0, 0, 0, 0, 0]),
                ..TestRecord::default()
            }],
        )
        .transactional(producer_id);
        batch.attributes |= 0x20;
        batch
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for record in &self.records {
            record.encode(&mut body);
        }
        let codec_bits = match self.codec {
            None => 0,
            Some(Codec::Gzip) => 1,
            Some(Codec::Snappy) => 2,
            Some(Codec::Lz4) => 3,
            Some(Codec::Zstd) => 4,
        };
        if let Some(codec) = self.codec {
            body = compress(codec, &body, self.bare_snappy);
        }
        let mut tail = Vec::new();
        tail.extend((self.attributes | codec_bits).to_be_bytes());
        tail.extend(self.last_offset_delta.to_be_bytes());
        tail.extend(self.base_timestamp.to_be_bytes());
        tail.extend(self.max_timestamp.to_be_bytes());
        tail.extend(self.producer_id.to_be_bytes());
        tail.extend(0_i16.to_be_bytes());
        tail.extend(0_i32.to_be_bytes());
        tail.extend(i32::try_from(self.records.len()).unwrap().to_be_bytes());
        tail.extend(&body);
        let mut batch = Vec::new();
        batch.extend(self.base_offset.to_be_bytes());
        batch.extend(i32::try_from(tail.len() + 9).unwrap().to_be_bytes());
        batch.extend(self.leader_epoch.to_be_bytes());
        batch.push(2);
        batch.extend(crc32c::crc32c(&tail).to_be_bytes());
        batch.extend(&tail);
        batch
    }
}

/// Record sets as they lie in logs, by name: every compression, transactions
/// with their markers, holes, headers, and a cut end.
pub(crate) fn real_sets() -> Vec<(String, Vec<u8>)> {
    let codecs = [
        ("none", None),
        ("gzip", Some(Codec::Gzip)),
        ("snappy", Some(Codec::Snappy)),
        ("lz4", Some(Codec::Lz4)),
        ("zstd", Some(Codec::Zstd)),
    ];
    let mut sets: Vec<(String, Vec<u8>)> = codecs
        .iter()
        .map(|(name, codec)| {
            let set = [TestBatch::of(0, 5), TestBatch::of(5, 3)]
                .map(|batch| batch.compressed(*codec).encode());
            ((*name).to_owned(), set.concat())
        })
        .collect();
    let mut bare = TestBatch::of(0, 4).compressed(Some(Codec::Snappy));
    bare.bare_snappy = true;
    sets.push(("snappy-bare".to_owned(), bare.encode()));

    let transactions = [
        TestBatch::of(0, 2).transactional(1),
        TestBatch::of(2, 2)
            .transactional(2)
            .compressed(Some(Codec::Lz4)),
        TestBatch::marker(4, 1, false),
        TestBatch::of(5, 1),
        TestBatch::marker(6, 2, true),
    ]
    .map(|batch| batch.encode());
    sets.push(("transactions".to_owned(), transactions.concat()));

    let mut compacted = TestBatch::new(
        10,
        vec![
            TestRecord {
                key: None,
                value: None,
                headers: vec![
                    ("trace".to_owned(), Some(b"0af7".to_vec())),
                    ("empty".to_owned(), None),
                ],
                ..TestRecord::default()
            },
            TestRecord::default(),
        ],
    );
    compacted.records[1].offset_delta = 7;
    compacted.last_offset_delta = 9;
    let mut set = compacted.encode();
    // The last batch of an answer may be cut.
    set.extend(&TestBatch::of(20, 3).encode()[..70]);
    sets.push(("compacted-and-cut".to_owned(), set));
    sets
}

/// Makes the CRC of the wire batch at the front fit again after a change.
pub(super) fn fix_crc(batch: &mut [u8]) {
    let len = i32::from_be_bytes(batch[8..12].try_into().unwrap());
    let end = (usize::try_from(len).unwrap() + 12).min(batch.len());
    let crc = crc32c::crc32c(&batch[21..end]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

impl TestRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut body = vec![0];
        varint(self.timestamp_delta, &mut body);
        varint(self.offset_delta.into(), &mut body);
        optional(self.key.as_deref(), &mut body);
        optional(self.value.as_deref(), &mut body);
        varint(self.headers.len().try_into().unwrap(), &mut body);
        for (name, value) in &self.headers {
            optional(Some(name.as_bytes()), &mut body);
            optional(value.as_deref(), &mut body);
        }
        varint(body.len().try_into().unwrap(), out);
        out.extend(body);
    }
}

fn optional(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    match bytes {
        None => varint(-1, out),
        Some(bytes) => {
            varint(bytes.len().try_into().unwrap(), out);
            out.extend(bytes);
        }
    }
}

pub(super) fn varint(value: i64, out: &mut Vec<u8>) {
    let mut zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while zigzag >= 0x80 {
        out.push(0x80 | u8::try_from(zigzag & 0x7f).unwrap());
        zigzag >>= 7;
    }
    out.push(u8::try_from(zigzag).unwrap());
}

pub(super) fn compress(codec: Codec, plain: &[u8], bare_snappy: bool) -> Vec<u8> {
    match codec {
        Codec::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Snappy if bare_snappy => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
        Codec::Snappy => {
            let mut out = vec![0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
            out.extend([0, 0, 0, 1, 0, 0, 0, 1]);
            for chunk in plain.chunks(32 * 1024) {
                let block = snap::raw::Encoder::new().compress_vec(chunk).unwrap();
                out.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
                out.extend(block);
            }
            out
        }
        Codec::Lz4 => {
            let mut encoder = lz4::EncoderBuilder::new()
                .block_mode(lz4::BlockMode::Independent)
                .block_size(lz4::BlockSize::Max64KB)
                .build(Vec::new())
                .unwrap();
            encoder.write_all(plain).unwrap();
            let (out, result) = encoder.finish();
            result.unwrap();
            out
        }
        Codec::Zstd => zstd::stream::encode_all(plain, 3).unwrap(),
    }
}
