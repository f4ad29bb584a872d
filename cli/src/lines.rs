//! Records as lines: `record_data` events, JSON objects, or text for people.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use keepup::Record;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// How a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A `record_data` event.
    Event,
    /// An object with the record's parts.
    Json,
    /// `topic-partition@offset key value`.
    Text,
}

/// Bytes that are a JSON string where they are UTF-8, else `{"base64": …}`.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = std::str::from_utf8(self.0) {
            serializer.serialize_str(text)
        } else {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry("base64", &BASE64.encode(self.0))?;
            map.end()
        }
    }
}

#[derive(Serialize)]
struct RecordData<'a> {
    timestamp: i64,
    name: &'static str,
    worker: usize,
    topic: &'a str,
    partition: i32,
    offset: i64,
    key: Option<Bytes<'a>>,
    value: Option<Bytes<'a>>,
}

#[derive(Serialize)]
struct RecordObject<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    timestamp: Option<i64>,
    key: Option<Bytes<'a>>,
    value: Option<Bytes<'a>>,
}

/// A record for another program: all of it.
#[derive(Serialize)]
struct WholeRecord<'a> {
    #[serde(flatten)]
    record: RecordObject<'a>,
    /// In their order; names may repeat.
    headers: Vec<WholeHeader<'a>>,
    attempt: u32,
}

#[derive(Serialize)]
struct WholeHeader<'a> {
    key: Bytes<'a>,
    value: Option<Bytes<'a>>,
}

/// Appends a record as one line of JSON with everything that it has.
pub(crate) fn append_for_command(line: &mut Vec<u8>, record: &Record<'_>) {
    let whole = WholeRecord {
        record: Parts::of(record).into(),
        headers: record
            .headers()
            .map(|header| WholeHeader {
                key: Bytes(header.name),
                value: header.value.map(Bytes),
            })
            .collect(),
        attempt: record.attempt(),
    };
    // Writing to memory cannot fail, nor can serialising these types.
    let _ = serde_json::to_writer(&mut *line, &whole);
    line.push(b'\n');
}

/// Where a record lies and what it holds.
#[derive(Clone, Copy, Debug)]
struct Parts<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    timestamp: Option<i64>,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(record: &Record<'a>) -> Self {
        Self {
            topic: record.topic(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp: record.timestamp_ms(),
            key: record.key(),
            value: record.value(),
        }
    }
}

impl<'a> From<Parts<'a>> for RecordObject<'a> {
    fn from(parts: Parts<'a>) -> Self {
        Self {
            topic: parts.topic,
            partition: parts.partition,
            offset: parts.offset,
            timestamp: parts.timestamp,
            key: parts.key.map(Bytes),
            value: parts.value.map(Bytes),
        }
    }
}

impl Format {
    /// Appends a record's line; `now` and `worker` are for events.
    pub(crate) fn append(self, line: &mut Vec<u8>, record: &Record<'_>, worker: usize, now: i64) {
        self.append_parts(line, Parts::of(record), worker, now);
    }

    fn append_parts(self, line: &mut Vec<u8>, parts: Parts<'_>, worker: usize, now: i64) {
        // Writing to memory cannot fail, nor can serialising these types.
        let _ = match self {
            Self::Event => serde_json::to_writer(
                &mut *line,
                &RecordData {
                    timestamp: now,
                    name: "record_data",
                    worker,
                    topic: parts.topic,
                    partition: parts.partition,
                    offset: parts.offset,
                    key: parts.key.map(Bytes),
                    value: parts.value.map(Bytes),
                },
            ),
            Self::Json => serde_json::to_writer(&mut *line, &RecordObject::from(parts)),
            Self::Text => {
                let place = format!("{}-{}@{}", parts.topic, parts.partition, parts.offset);
                line.extend_from_slice(place.as_bytes());
                for bytes in [parts.key, parts.value] {
                    line.push(b' ');
                    append_text(line, bytes);
                }
                Ok(())
            }
        };
        line.push(b'\n');
    }
}

/// Appends bytes for people: control characters escaped, so that a record
/// stays one line and a terminal stays as it is.
fn append_text(line: &mut Vec<u8>, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else {
        line.extend_from_slice(b"null");
        return;
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        line.extend_from_slice(b"base64:");
        line.extend_from_slice(BASE64.encode(bytes).as_bytes());
        return;
    };
    let mut utf8 = [0; 4];
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default().map(|escaped| escaped as u8));
        } else {
            line.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format, key: Option<&[u8]>, value: Option<&[u8]>) -> String {
        let mut buffer = Vec::new();
        let parts = Parts {
            topic: "orders",
            partition: 3,
            offset: 42,
            timestamp: Some(1_600_000_000_000),
            key,
            value,
        };
        format.append_parts(&mut buffer, parts, 1, 1_700_000_000_000);
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn a_record_is_one_line_in_every_format() {
        assert_eq!(
            line(Format::Event, Some(b"k"), Some("größe \"1\"\n".as_bytes())),
            "{\"timestamp\":1700000000000,\"name\":\"record_data\",\"worker\":1,\
             \"topic\":\"orders\",\"partition\":3,\"offset\":42,\"key\":\"k\",\
             \"value\":\"größe \\\"1\\\"\\n\"}\n"
        );
        assert_eq!(
            line(Format::Json, None, Some(&[0xff, 0x00])),
            "{\"topic\":\"orders\",\"partition\":3,\"offset\":42,\
             \"timestamp\":1600000000000,\"key\":null,\"value\":{\"base64\":\"/wA=\"}}\n"
        );
        assert_eq!(
            line(
                Format::Text,
                Some(b"k"),
                Some("größe\t\x1b[1m\n".as_bytes())
            ),
            "orders-3@42 k größe\\t\\u{1b}[1m\\n\n"
        );
        assert_eq!(
            line(Format::Text, None, Some(&[0xff])),
            "orders-3@42 null base64:/w==\n"
        );
    }
}
