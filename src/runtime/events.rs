//! Events on their way to the observer.
//!
//! Whoever has something to tell must not wait for whoever listens: the queue
//! is bounded, and what does not fit is dropped and counted. The observer runs
//! on a thread of its own and learns of the gap by a warning.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::clock::Clock;
use crate::config::Observer;
use crate::event::{Event, EventKind};

/// Events that may wait for the observer. At the few events per second that a
/// worker gives this is minutes of it.
const QUEUE: usize = 4_096;

/// What goes through the queue.
#[derive(Debug)]
pub(crate) enum Message {
    Event(Event),
    /// Nothing comes after this. Sinks may be left over in workers that were
    /// abandoned, so the end is not the end of the last sink.
    End,
}

/// Where events go in; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct EventSink {
    queue: Option<Sender<Message>>,
    dropped: Arc<AtomicU64>,
    clock: Clock,
    /// Another process tells the log of it.
    is_elsewhere: bool,
}

impl EventSink {
    /// A sink that nobody listens to.
    pub(crate) fn unobserved(clock: Clock) -> Self {
        Self {
            queue: None,
            dropped: Arc::default(),
            clock,
            is_elsewhere: false,
        }
    }

    /// A sink whose events another process takes: it tells its observer of them,
    /// and the log.
    pub(crate) fn to_another(clock: &Clock) -> (Self, EventQueue) {
        let (sender, events) = bounded(QUEUE);
        let sink = Self {
            queue: Some(sender),
            is_elsewhere: true,
            ..Self::unobserved(clock.clone())
        };
        let dropped = Arc::clone(&sink.dropped);
        (sink, EventQueue { events, dropped })
    }

    /// True where somebody listens: what costs something to tell may be left
    /// out otherwise.
    pub(crate) fn is_observed(&self) -> bool {
        self.queue.is_some()
    }

    /// Tells what happened. Never waits.
    pub(crate) fn send(&self, worker: Option<usize>, kind: EventKind) {
        let event = Event {
            timestamp_ms: self.clock.unix_millis(),
            worker,
            kind,
        };
        match &event.kind {
            _ if self.is_elsewhere => {}
            EventKind::Warning { message } => tracing::warn!("{message}"),
            kind if kind.is_routine() => tracing::debug!("{event}"),
            _ => tracing::info!("{event}"),
        }
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(Message::Event(event)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.send(
            None,
            EventKind::Warning {
                message: message.into(),
            },
        );
    }
}

/// Events on their way to another process.
#[derive(Debug)]
pub(crate) struct EventQueue {
    events: Receiver<Message>,
    dropped: Arc<AtomicU64>,
}

impl EventQueue {
    /// Where the next one comes from, to wait for it; [`EventQueue::with`] takes
    /// what came.
    pub(crate) fn arrivals(&self) -> &Receiver<Message> {
        &self.events
    }

    /// That one, and what happened since.
    pub(crate) fn with(&self, first: Message) -> Vec<EventKind> {
        self.kinds(std::iter::once(first).chain(self.events.try_iter()))
    }

    /// What happened since, in order; a gap is told of first.
    pub(crate) fn take(&self) -> Vec<EventKind> {
        self.kinds(self.events.try_iter())
    }

    fn kinds(&self, messages: impl Iterator<Item = Message>) -> Vec<EventKind> {
        let missed = self.dropped.swap(0, Ordering::Relaxed);
        let gap = (missed > 0).then(|| EventKind::Warning {
            message: gap(missed),
        });
        let events = messages.filter_map(|message| match message {
            Message::Event(event) => Some(event.kind),
            Message::End => None,
        });
        gap.into_iter().chain(events).collect()
    }
}

fn gap(missed: u64) -> String {
    format!(
        "{missed} events were dropped because the observer fell {QUEUE} events behind; make it faster"
    )
}

/// The thread on which the observer runs.
pub(crate) struct EventThread {
    running: Option<(Sender<Message>, JoinHandle<()>)>,
}

impl EventThread {
    /// Starts the observer's thread; without an observer nothing is started.
    pub(crate) fn start(
        observer: Option<Observer>,
        clock: &Clock,
    ) -> std::io::Result<(Self, EventSink)> {
        let mut sink = EventSink::unobserved(clock.clone());
        let Some(observer) = observer else {
            return Ok((Self { running: None }, sink));
        };
        let (sender, receiver) = bounded(QUEUE);
        let dropped = Arc::clone(&sink.dropped);
        let clock = clock.clone();
        let thread = std::thread::Builder::new()
            .name("keepup-events".into())
            .spawn(move || observe(observer, &receiver, &dropped, &clock))?;
        sink.queue = Some(sender.clone());
        Ok((
            Self {
                running: Some((sender, thread)),
            },
            sink,
        ))
    }

    /// Waits for the observer to have seen everything, `patience` at most.
    pub(crate) fn join(self, patience: Duration, clock: &Clock) {
        let Some((queue, thread)) = self.running else {
            return;
        };
        let deadline = clock.now() + patience;
        let told = queue.send_timeout(Message::End, patience).is_ok();
        while told && !thread.is_finished() && clock.now() < deadline {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if thread.is_finished() {
            // Its panics were caught inside.
            let _ = thread.join();
        } else {
            tracing::warn!(
                "the event observer did not return within {patience:?}; its thread is left behind"
            );
        }
    }
}

fn observe(mut observer: Observer, events: &Receiver<Message>, dropped: &AtomicU64, clock: &Clock) {
    while let Ok(Message::Event(event)) = events.recv() {
        let missed = dropped.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let message = gap(missed);
            tracing::warn!("{message}");
            let kind = EventKind::Warning { message };
            let gap = Event {
                timestamp_ms: clock.unix_millis(),
                worker: None,
                kind,
            };
            call(&mut observer, &gap);
        }
        call(&mut observer, &event);
    }
}

fn call(observer: &mut Observer, event: &Event) {
    if catch_unwind(AssertUnwindSafe(|| observer(event))).is_err() {
        tracing::error!(%event, "the event observer panicked; the run goes on");
    }
}
