//! When a fake broker misbehaves, and how.

use std::fmt;
use std::time::Duration;

use super::release::Request;

/// One way to misbehave, in place of a proper answer.
///
/// Those that concern records count only where the answer has records; before
/// that they are not used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A frame of the right length, all of it random.
    Garbage,
    /// The right header, and behind it random bytes.
    ScrambledBody,
    /// The answer announces itself and breaks off half-way; then the connection
    /// is closed.
    HalfAnswer,
    /// The frame says that it is this long, and nothing comes of it.
    FrameOf(i32),
    /// The answer carries the number of another question.
    WrongNumber,
    /// The connection is closed instead.
    Close,
    /// Nothing comes any more, and the connection stays open.
    Stall,
    /// The answer comes byte by byte, with this much time between two.
    Drip(Duration),
    /// The first array of the answer says that it is longer than any memory.
    EndlessArray,
    /// An error code: of the whole answer where that version has a place for
    /// it, else of everything in it.
    Error(i16),
    /// An error code on every partition of the answer (or topic, or
    /// coordinator, whatever it is about).
    PartitionError(i16),
    /// A bit of the records is turned: their CRC does not match.
    CorruptRecords,
    /// The records break off in the middle of the first batch.
    CutRecords,
    /// The records are in the format of before Kafka 0.11.
    OldRecords,
    /// The records are those before the ones that were asked for.
    EarlierRecords,
    /// The topics have another name and another id.
    WrongTopic,
    /// The partitions have other numbers.
    WrongPartition,
    /// Everything is in the answer twice.
    Twice,
    /// At once, an answer without any topic.
    Nothing,
    /// A proper answer that says that the client is held back for this long.
    Throttle(Duration),
}

impl Fault {
    /// Whether it only makes sense where the answer has records.
    pub(crate) fn needs_records(self) -> bool {
        matches!(
            self,
            Self::CorruptRecords | Self::CutRecords | Self::OldRecords | Self::EarlierRecords
        )
    }
}

/// A request that a fake broker is about to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Asked {
    /// The broker's id.
    pub broker: i32,
    /// What is asked.
    pub request: Request,
    /// In which version.
    pub version: i16,
    /// By what program, as it named itself when it connected: `keepup`,
    /// `librdkafka`, or nothing before it did.
    pub software: String,
    /// Whether the proper answer has records.
    pub has_records: bool,
}

/// Which requests get which fault: by default each of that kind, from every
/// client, for ever.
#[derive(Clone, Debug)]
#[must_use = "a rule does nothing before it is given to a cluster"]
pub struct Rule {
    request: Request,
    fault: Fault,
    broker: Option<i32>,
    software: Option<String>,
    skip: u64,
    left: Option<u64>,
}

impl Rule {
    /// Every request of that kind gets that fault.
    pub fn new(request: Request, fault: Fault) -> Self {
        Self {
            request,
            fault,
            broker: None,
            software: None,
            skip: 0,
            left: None,
        }
    }

    /// Only what this broker is asked.
    pub fn of_broker(mut self, id: i32) -> Self {
        self.broker = Some(id);
        self
    }

    /// Only what this program asks: `keepup` for the connections that keepup
    /// makes itself, `librdkafka` for those of the group's member.
    pub fn to(mut self, software: &str) -> Self {
        self.software = Some(software.to_owned());
        self
    }

    /// Not before that many of them were answered properly.
    pub fn after(mut self, answers: u64) -> Self {
        self.skip = answers;
        self
    }

    /// Only that many times.
    pub fn times(mut self, times: u64) -> Self {
        self.left = Some(times);
        self
    }

    fn take(&mut self, asked: &Asked) -> Option<Fault> {
        let fits = self.request == asked.request
            && self.broker.is_none_or(|broker| broker == asked.broker)
            && self
                .software
                .as_ref()
                .is_none_or(|software| *software == asked.software)
            && (asked.has_records || !self.fault.needs_records());
        if !fits || self.left == Some(0) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        Some(self.fault)
    }
}

/// Decides over each request by itself.
type Chooser = Box<dyn FnMut(&Asked) -> Option<Fault> + Send>;

/// What a cluster was told to do wrong.
#[derive(Default)]
pub(crate) struct Script {
    rules: Vec<Rule>,
    chooser: Option<Chooser>,
    played: u64,
}

impl Script {
    pub(crate) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(crate) fn choose_by(&mut self, chooser: Chooser) {
        self.chooser = Some(chooser);
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
        self.chooser = None;
    }

    /// How many faults were taken so far.
    pub(crate) fn played(&self) -> u64 {
        self.played
    }

    /// What the answer to this request is to suffer. The first rule that says
    /// something has it; the chooser has what no rule wants.
    pub(crate) fn take(&mut self, asked: &Asked) -> Option<Fault> {
        let by_rule = self.rules.iter_mut().find_map(|rule| rule.take(asked));
        let fault = by_rule.or_else(|| {
            let chosen = self.chooser.as_mut().and_then(|choose| choose(asked));
            chosen.filter(|fault| asked.has_records || !fault.needs_records())
        });
        self.played += u64::from(fault.is_some());
        fault
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("rules", &self.rules)
            .field("played", &self.played)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(broker: i32, request: Request, has_records: bool) -> Asked {
        Asked {
            broker,
            request,
            version: 4,
            software: "keepup".to_owned(),
            has_records,
        }
    }

    #[test]
    fn a_rule_waits_for_its_turn_and_is_used_up() {
        let mut script = Script::default();
        script.add(
            Rule::new(Request::Fetch, Fault::Close)
                .of_broker(1)
                .after(1)
                .times(2),
        );
        let mut take = |broker, request| script.take(&asked(broker, request, false));
        assert_eq!(take(1, Request::Metadata), None);
        assert_eq!(take(2, Request::Fetch), None);
        let played: Vec<_> = (0..4).map(|_| take(1, Request::Fetch).is_some()).collect();
        assert_eq!(played, [false, true, true, false]);
        assert_eq!(script.played(), 2);
    }

    #[test]
    fn what_spoils_records_waits_for_records() {
        let mut script = Script::default();
        script.add(Rule::new(Request::Fetch, Fault::CutRecords).times(1));
        assert_eq!(script.take(&asked(1, Request::Fetch, false)), None);
        let fault = script.take(&asked(1, Request::Fetch, true));
        assert_eq!(fault, Some(Fault::CutRecords));
    }

    #[test]
    fn a_rule_can_be_for_one_program_and_the_rest_is_the_choosers() {
        let mut script = Script::default();
        script.add(Rule::new(Request::Metadata, Fault::Stall).to("librdkafka"));
        script.choose_by(Box::new(|asked| {
            (asked.request == Request::Metadata).then_some(Fault::Twice)
        }));
        let fault = script.take(&asked(1, Request::Metadata, false));
        assert_eq!(fault, Some(Fault::Twice));
        script.clear();
        assert_eq!(script.take(&asked(1, Request::Metadata, false)), None);
    }
}
