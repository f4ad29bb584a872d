//! Handlers in the shell, for the command: they note what they are given, and do at one record what a test wants.

use std::fs;
use std::ops::Range;

use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENT, wait_until};

/// Keeps the record until [`Notes::open_all`], or until one of its partition may pass.
pub(crate) const HOLD: &str = r#"part=${line#*'"partition":'}
    while [ ! -e open ] && ! rm "pass-${part%%,*}" 2>/dev/null; do sleep 0.05; done"#;

/// What handlers of one test have noted, each name in a file.
#[derive(Debug)]
pub(crate) struct Notes(TempDir);

impl Notes {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// The handler that notes under a name each record that it is given, and says `done`: after `at_five`, a piece of
    /// shell, where the record is the one at offset 5 of its partition.
    pub(crate) fn handler(&self, name: &str, at_five: &str) -> String {
        format!(
            r#"exec=cd '{}'; while read -r line; do printf '%s\n' "$line" >>'{name}'
    case "$line" in *'"offset":5,'*) {at_five}
    ;; esac; echo 'done'; done"#,
            self.0.path().display()
        )
    }

    /// Lets the record that is held of a partition go on, or the next that comes; one after it is held again.
    pub(crate) fn let_one_through(&self, partition: i64) {
        self.touch(&format!("pass-{partition}"));
    }

    /// Lets every record go on.
    pub(crate) fn open_all(&self) {
        self.touch("open");
    }

    fn touch(&self, file: &str) {
        fs::write(self.0.path().join(file), "").expect("it can be written");
    }

    fn text(&self, name: &str) -> String {
        // Nothing is there before the first record.
        fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }

    /// A number of each record of a partition that was given, in order: `offset` or `attempt`.
    pub(crate) fn numbers(&self, name: &str, partition: i64, field: &str) -> Vec<i64> {
        let text = self.text(name);
        // A line without its end is being written.
        let whole = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let records = whole.map(|line| {
            let record: Value = serde_json::from_str(line).expect("a record is JSON");
            record
        });
        records
            .filter(|record| record["partition"] == partition)
            .map(|record| record[field].as_i64().expect("a number"))
            .collect()
    }

    /// The offsets of a partition that were given, in order.
    pub(crate) fn given(&self, name: &str, partition: i64) -> Vec<i64> {
        self.numbers(name, partition, "offset")
    }

    /// Waits until the last record that was given of each of these partitions is at that offset.
    pub(crate) fn wait_given(&self, name: &str, partitions: Range<i64>, last: i64) {
        wait_until(PATIENT, "records to be given to a handler", || {
            let mut given = partitions
                .clone()
                .map(|partition| self.given(name, partition));
            if given.all(|offsets| offsets.last() == Some(&last)) {
                Ok(())
            } else {
                Err(self.text(name))
            }
        });
    }
}
