//! Where a record comes from, for those who follow one request through many
//! services: W3C Trace Context from its headers, as a `tracing` span around the
//! handler.
//!
//! The headers `traceparent` and `tracestate` are what instrumented producers
//! write. A handler's span carries what they say as fields, so that log lines
//! of the handler name the trace, and whoever bridges `tracing` to a tracing
//! system finds the parent (`Record::trace_context`). No such system is named
//! here.
//!
//! Nobody pays for it who did not ask: the span is at level DEBUG of the target
//! `keepup::record`, whether anybody wants it is looked up once per turn of a
//! lane (one atomic load and a comparison where nobody does), and no header is
//! read before somebody does. Per record that leaves a branch on a value in a
//! register.

use std::fmt;

use tracing::Span;

use crate::handler::Records;
use crate::record::Record;

/// The target of the spans around handlers.
const TARGET: &str = "keepup::record";

/// What the headers `traceparent` and `tracestate` of a record say:
/// [W3C Trace Context](https://www.w3.org/TR/trace-context/), levels 1 and 2.
/// Made by [`Record::trace_context`].
///
/// A handler's `tracing` span (`handle`, level DEBUG, target `keepup::record`)
/// has the same as fields. Who bridges `tracing` to OpenTelemetry makes the
/// producer's span its parent, inside of the handler, from
/// [`trace_id`](Self::trace_id), [`parent_id`](Self::parent_id) and
/// [`flags`](Self::flags). Written out (`Display`), it is the `traceparent` that
/// was read.
///
/// ```
/// fn handle(record: &keepup::Record<'_>) {
///     if let Some(trace) = record.trace_context() {
///         println!("part of {} after {}", trace.trace_id(), trace.parent_id());
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext<'a> {
    traceparent: &'a str,
    flags: u8,
    tracestate: Option<&'a str>,
}

impl<'a> TraceContext<'a> {
    /// Reads what a record's headers say; `None` where a rule of the
    /// recommendation says that it is to be ignored.
    fn parse(traceparent: &'a [u8], tracestate: Option<&'a [u8]>) -> Option<Self> {
        let traceparent = std::str::from_utf8(traceparent).ok()?;
        let flags = flags_of(traceparent.as_bytes())?;
        Some(Self {
            traceparent,
            flags,
            tracestate: tracestate
                .and_then(|state| std::str::from_utf8(state).ok())
                .filter(|state| state.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t'))),
        })
    }

    /// The trace that the record is part of: 32 lowercase hexadecimal digits, not
    /// all of them 0.
    pub fn trace_id(&self) -> &'a str {
        &self.traceparent[3..35]
    }

    /// The producer's span, the parent of whatever is done with the record: 16
    /// lowercase hexadecimal digits, not all of them 0.
    pub fn parent_id(&self) -> &'a str {
        &self.traceparent[36..52]
    }

    /// The trace flags, all eight bits.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the producer recorded its part of the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// What tracing systems say to one another, as it was read; `None` where
    /// there is nothing, or something that is not printable ASCII.
    pub fn tracestate(&self) -> Option<&'a str> {
        self.tracestate
    }
}

impl fmt::Display for TraceContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.traceparent)
    }
}

impl<'a> Record<'a> {
    /// The trace that this record is part of, by its headers `traceparent` and
    /// `tracestate` (of each the last). `None` where there is no `traceparent`, or
    /// where it is not one.
    pub fn trace_context(&self) -> Option<TraceContext<'a>> {
        let (mut traceparent, mut tracestate) = (None, None);
        for header in self.headers() {
            match header.name {
                b"traceparent" => traceparent = header.value,
                b"tracestate" => tracestate = header.value,
                _ => {}
            }
        }
        TraceContext::parse(traceparent?, tracestate)
    }
}

/// The flags of a `traceparent`, where it is one:
/// `version-trace_id-parent_id-flags`, and behind that, in versions that are not
/// written yet, whatever follows a further hyphen.
fn flags_of(traceparent: &[u8]) -> Option<u8> {
    let (known, rest) = traceparent.split_at_checked(55)?;
    let version = hex_byte(&known[..2])?;
    let is_whole = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest[0] == b'-',
    };
    let has_hyphens = [2, 35, 52].iter().all(|&at| known[at] == b'-');
    let is_id = |id: &[u8]| {
        id.iter().all(|&digit| hex_digit(digit).is_some()) && id.iter().any(|&digit| digit != b'0')
    };
    if !is_whole || !has_hyphens || !is_id(&known[3..35]) || !is_id(&known[36..52]) {
        return None;
    }
    hex_byte(&known[53..])
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    Some(hex_digit(digits[0])? << 4 | hex_digit(digits[1])?)
}

/// Capital letters are refused, by the recommendation.
fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Whether somebody wants spans around handlers: one load where nobody does.
#[inline]
pub(crate) fn is_wanted() -> bool {
    tracing::span_enabled!(target: TARGET, tracing::Level::DEBUG)
}

/// The span around the handler of one record.
#[cold]
#[inline(never)]
pub(crate) fn span_of(record: &Record<'_>) -> Span {
    let trace = record.trace_context();
    let trace = trace.as_ref();
    tracing::debug_span!(
        target: TARGET,
        "handle",
        // What bridges to OpenTelemetry take for the span's kind and name.
        otel.kind = "consumer",
        otel.name = %format_args!("process {}", record.topic()),
        topic = record.topic(),
        partition = record.partition(),
        offset = record.offset(),
        attempt = record.attempt(),
        trace_id = trace.map(TraceContext::trace_id),
        parent_id = trace.map(TraceContext::parent_id),
        trace_flags = trace.map(TraceContext::flags),
        tracestate = trace.and_then(TraceContext::tracestate),
    )
}

/// The span around the handler of a batch. Its records may come from as many
/// traces: what each says is asked of the record.
#[cold]
#[inline(never)]
pub(crate) fn span_of_batch(records: &Records<'_>) -> Option<Span> {
    let first = records.iter().next()?;
    Some(tracing::debug_span!(
        target: TARGET,
        "handle_batch",
        otel.kind = "consumer",
        otel.name = %format_args!("process {}", first.topic()),
        topic = first.topic(),
        partition = first.partition(),
        first_offset = first.offset(),
        records = records.len(),
        attempt = records.attempt(),
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fmt::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use parking_lot::Mutex;
    use proptest::prelude::*;
    use tracing::field::{Field, Visit};
    use tracing::span;
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    fn parse(traceparent: &str) -> Option<TraceContext<'_>> {
        TraceContext::parse(traceparent.as_bytes(), None)
    }

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says() {
        let header = format!("00-{TRACE}-{PARENT}-01");
        let trace = parse(&header).expect("it is one");
        assert_eq!((trace.trace_id(), trace.parent_id()), (TRACE, PARENT));
        assert_eq!((trace.flags(), trace.is_sampled()), (1, true));
        assert_eq!(trace.to_string(), header);
        let unsampled = format!("00-{TRACE}-{PARENT}-fe");
        let unsampled = parse(&unsampled).map(|trace| (trace.flags(), trace.is_sampled()));
        assert_eq!(unsampled, Some((0xfe, false)));
        let later = [
            format!("cc-{TRACE}-{PARENT}-01"),
            format!("01-{TRACE}-{PARENT}-01-what-the-future-will-be-like"),
        ];
        assert!(later.iter().all(|later| parse(later).is_some()));
    }

    #[test]
    fn what_is_not_a_traceparent_is_ignored() {
        for wrong in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{PARENT}-0"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("00-{TRACE}-{PARENT}-01."),
            format!("cc-{TRACE}-{PARENT}-01.more"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("0g-{TRACE}-{PARENT}-01"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{}-{PARENT}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}x{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-0é"),
        ] {
            assert_eq!(parse(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_tracestate_goes_with_its_traceparent_and_never_alone() {
        let header = format!("00-{TRACE}-{PARENT}-01");
        let with = |state: &'static [u8]| {
            let trace = TraceContext::parse(header.as_bytes(), Some(state)).expect("it is one");
            trace.tracestate().map(str::to_owned)
        };
        assert_eq!(with(b"a=1,b@c=2"), Some("a=1,b@c=2".to_owned()));
        assert_eq!(with(b"a=\xff"), None);
        assert_eq!(with("a=é".as_bytes()), None);
        assert_eq!(TraceContext::parse(b"no", Some(b"a=1")), None);
    }

    proptest! {
        #[test]
        fn nothing_in_a_header_panics(header in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceContext::parse(&header, Some(&header));
        }

        #[test]
        fn every_traceparent_of_this_version_comes_back(trace in 1..u128::MAX, parent in 1..u64::MAX, flags: u8) {
            let header = format!("00-{trace:032x}-{parent:016x}-{flags:02x}");
            let read = parse(&header).expect("it is one");
            prop_assert_eq!(u128::from_str_radix(read.trace_id(), 16).ok(), Some(trace));
            prop_assert_eq!(u64::from_str_radix(read.parent_id(), 16).ok(), Some(parent));
            prop_assert_eq!(read.flags(), flags);
        }
    }

    /// Notes the spans around handlers, and which is entered.
    #[derive(Clone, Default)]
    pub(crate) struct Spans {
        made: Arc<Mutex<Vec<String>>>,
        next: Arc<AtomicU64>,
        entered: Arc<Mutex<Vec<u64>>>,
    }

    impl Spans {
        /// Notes the spans of this thread while `work` runs.
        pub(crate) fn note<T>(&self, work: impl FnOnce() -> T) -> T {
            // Where one subscriber is alive, a span that is reached for the first
            // time asks that of the thread that reaches it, and keeps the answer
            // for all; other tests' threads have none. With two both are asked.
            let other = tracing::Dispatch::new(Self::default());
            let result = tracing::subscriber::with_default(self.clone(), work);
            drop(other);
            result
        }

        /// The spans that were made, with their fields.
        pub(crate) fn made(&self) -> Vec<String> {
            self.made.lock().clone()
        }

        /// How many spans are entered now.
        pub(crate) fn entered(&self) -> usize {
            self.entered.lock().len()
        }
    }

    struct Fields(String);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            let _ = write!(self.0, " {}={value:?}", field.name());
        }
    }

    impl Subscriber for Spans {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == TARGET
        }

        fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
            let mut fields = Fields(span.metadata().name().to_owned());
            span.record(&mut fields);
            self.made.lock().push(fields.0);
            span::Id::from_u64(self.next.fetch_add(1, Ordering::Relaxed) + 1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &Event<'_>) {}

        fn enter(&self, span: &span::Id) {
            self.entered.lock().push(span.into_u64());
        }

        fn exit(&self, span: &span::Id) {
            self.entered.lock().retain(|id| *id != span.into_u64());
        }
    }
}
