//! Kafka's own command line tools, run from the same jars.

use std::process::Command;
use std::time::Duration;

use super::cluster;
use super::kafka::{Isolation, Kafka};
use super::process::{Finished, run, script};

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

impl Kafka {
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
