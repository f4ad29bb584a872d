//! Kafka's own command line tools, run from the same jars.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::cluster;
use super::kafka::{Isolation, Kafka};
use super::process::{Finished, repository, run, script};

/// One line of the console consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsoleRecord {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// As Kafka prints them: `name:value,name:value` or `NO_HEADERS`.
    pub(crate) headers: String,
    /// `null` where there is none, as in Kafka's output.
    pub(crate) key: String,
    pub(crate) value: String,
}

/// One line of `kafka-consumer-groups --describe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupRow {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) committed: Option<i64>,
    pub(crate) end: Option<i64>,
    pub(crate) lag: Option<i64>,
    pub(crate) consumer: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) client: Option<String>,
}

/// A record with all that a consumer sees of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// -1 where it has none.
    pub(crate) timestamp: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// Names as Java has them: what is not UTF-8 is U+FFFD.
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Bytes as a failure's message can have them: a megabyte would hide everything else.
fn short(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "null".to_owned(),
        Some(bytes) if bytes.len() <= 40 => format!("b\"{}\"", bytes.escape_ascii()),
        Some(bytes) => format!("{} bytes", bytes.len()),
    }
}

impl fmt::Debug for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("{}-{}@{}", self.topic, self.partition, self.offset);
        let headers = self.headers.iter().take(5);
        f.debug_struct(&place)
            .field("timestamp", &self.timestamp)
            .field("key", &short(self.key.as_deref()))
            .field("value", &short(self.value.as_deref()))
            .field("headers", &self.headers.len())
            .field(
                "first",
                &headers
                    .map(|(name, value)| (name, short(value.as_deref())))
                    .collect::<Vec<_>>(),
            )
            .finish()
    }
}

impl Kafka {
    /// Everything in these topics as a Java consumer of that isolation level sees it, partition after partition.
    pub(crate) fn java_reader(&self, isolation: Isolation, topics: &[&str]) -> Vec<Whole> {
        let source = repository().join("tests/kafka/Reader.java");
        let source = source.to_str().expect("a path in UTF-8");
        let arguments = [&[isolation.level()], topics].concat();
        let output = self.tool(source, &arguments, Duration::from_mins(2));
        assert_eq!(
            output.code,
            Some(0),
            "it needs a JDK, not only a runtime: {}",
            output.stderr
        );
        let mut lines: Vec<&str> = output.stdout.lines().collect();
        let read = lines.len() - 1;
        assert_eq!(lines.pop(), Some(format!("{{\"done\":{read}}}").as_str()));
        let mut records: Vec<Whole> = lines.into_iter().map(whole_record).collect();
        // Stable: within a partition they stay as they came.
        records.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        records
    }

    /// Runs a class of Kafka's tools.
    pub(crate) fn tool(&self, class: &str, arguments: &[&str], within: Duration) -> Finished {
        let home = cluster::home(class).expect("there is a broker, so there are jars");
        let mut command = Command::new(script("java"));
        command
            .arg(home)
            .args([
                "-Xmx128m",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "--",
                class,
            ])
            .args(["--bootstrap-server", self.bootstrap()])
            .args(arguments);
        run(command, "", within)
    }

    /// What `kafka-console-consumer` prints of the first `count` records of a partition, or of all there are within
    /// 10 quiet seconds.
    pub(crate) fn console_consumer(
        &self,
        topic: &str,
        partition: i32,
        isolation: Isolation,
        count: usize,
    ) -> Vec<ConsoleRecord> {
        let mut arguments: Vec<String> = Vec::new();
        let mut option =
            |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
        option("--topic", topic);
        option("--partition", &partition.to_string());
        option("--offset", "earliest");
        option("--isolation-level", isolation.level());
        option("--max-messages", &count.to_string());
        option("--timeout-ms", "10000");
        for what in ["partition", "offset", "headers", "key"] {
            option("--formatter-property", &format!("print.{what}=true"));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let class = "org.apache.kafka.tools.consumer.ConsoleConsumer";
        let output = self.tool(class, &arguments, Duration::from_mins(2));
        assert!(
            output.stderr.contains("Processed a total of"),
            "the console consumer failed: {output:?}"
        );
        output.stdout.lines().map(console_record).collect()
    }

    /// Runs `kafka-consumer-groups`.
    pub(crate) fn consumer_groups(&self, arguments: &[&str]) -> Finished {
        let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
        self.tool(class, arguments, Duration::from_mins(2))
    }

    /// What `kafka-consumer-groups --describe` says of a group's offsets.
    pub(crate) fn describe_group(&self, group: &str) -> Vec<GroupRow> {
        let output = self.consumer_groups(&["--describe", "--group", group]);
        assert_eq!(output.code, Some(0), "{output:?}");
        output.stdout.lines().filter_map(group_row).collect()
    }
}

fn console_record(line: &str) -> ConsoleRecord {
    let fields: Vec<&str> = line.splitn(5, '\t').collect();
    let [partition, offset, headers, key, value] = fields[..] else {
        panic!("not a line of the console consumer: {line}");
    };
    let number = |field: &str, name: &str| {
        let digits = field.strip_prefix(name).expect("a named field");
        digits.parse::<i64>().expect("a number")
    };
    ConsoleRecord {
        partition: i32::try_from(number(partition, "Partition:")).expect("a partition"),
        offset: number(offset, "Offset:"),
        headers: headers.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn whole_record(line: &str) -> Whole {
    let line: Value = serde_json::from_str(line).expect("a line of JSON");
    let number = |field: &str| line[field].as_i64().expect("a number");
    let headers = line["headers"].as_array().expect("a list").iter();
    Whole {
        topic: line["topic"].as_str().expect("a topic").to_owned(),
        partition: i32::try_from(number("partition")).expect("a partition"),
        offset: number("offset"),
        timestamp: number("timestamp"),
        key: hexadecimal(&line["key"]),
        value: hexadecimal(&line["value"]),
        headers: headers
            .map(|header| {
                let name = hexadecimal(&header["name"]).expect("a header has a name");
                let name = String::from_utf8(name).expect("Java has made it UTF-8");
                (name, hexadecimal(&header["value"]))
            })
            .collect(),
    }
}

/// Bytes as `Reader.java` prints them; `None` for null.
fn hexadecimal(text: &Value) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("a digit");
    let pairs = text.as_str()?.as_bytes().chunks_exact(2);
    Some(
        pairs
            .map(|pair| u8::try_from(digit(pair[0]) << 4 | digit(pair[1])).expect("eight bits"))
            .collect(),
    )
}

fn group_row(line: &str) -> Option<GroupRow> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [
        _,
        topic,
        partition,
        committed,
        end,
        lag,
        consumer,
        host,
        client,
    ] = fields[..]
    else {
        return None;
    };
    let known = |field: &str| (field != "-").then(|| field.to_owned());
    Some(GroupRow {
        topic: topic.to_owned(),
        // The heading has no number here.
        partition: partition.parse().ok()?,
        committed: committed.parse().ok(),
        end: end.parse().ok(),
        lag: lag.parse().ok(),
        consumer: known(consumer),
        host: known(host),
        client: known(client),
    })
}
