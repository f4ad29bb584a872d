//! What goes on beside the run and must not hold it up: the reporter, and what
//! shows its snapshots. They outlive the member's thread, so that a run that
//! ended without a word is still told of, and end with the handle.

use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(feature = "http")]
use std::time::Duration;

use crate::config::Settings;
use crate::error::Error;
use crate::kafka::connection::StopFlag;
use crate::lag::reporter::{ReporterParts, ReporterThread};
use crate::lag::snapshot::LagSnapshot;
use crate::telemetry::exposition;
use crate::telemetry::facade::Facade;
#[cfg(feature = "http")]
use crate::telemetry::http::{Broke, Pages, Running, Server};
#[cfg(feature = "http")]
use crate::telemetry::recorder;
use crate::telemetry::systemd;

/// How long answers that are under way may take when the run has ended.
#[cfg(feature = "http")]
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// What the address is logged under: with port 0 the log is where a program that
/// calls `run` learns the port, so the command shows it at any verbosity.
#[cfg(feature = "http")]
const LISTEN: &str = "keepup::listen";

/// In every so many looks the process-wide recorder is tidied up.
#[cfg(feature = "http")]
const UPKEEP_EVERY: u32 = 5;

/// An address that is taken for a run, and not served yet.
#[derive(Debug)]
pub(crate) struct Listener {
    #[cfg(feature = "http")]
    server: Option<Server>,
}

impl Listener {
    /// Takes the address that the settings ask for, if they do: before anything
    /// is started, since one in use is a mistake in the settings.
    pub(crate) fn bind(settings: &Settings) -> Result<Self, Error> {
        let Some(address) = settings.listen else {
            return Ok(Self {
                #[cfg(feature = "http")]
                server: None,
            });
        };
        #[cfg(feature = "http")]
        {
            let server =
                Server::bind(address).map_err(|source| Error::Listen { address, source })?;
            Ok(Self {
                server: Some(server),
            })
        }
        #[cfg(not(feature = "http"))]
        Err(Error::Listen {
            address,
            source: std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                "this program is built without keepup's feature \"http\"",
            ),
        })
    }
}

/// The threads beside the run.
#[derive(Debug)]
pub(crate) struct Services {
    reporter: ReporterThread,
    stop_asking: StopFlag,
    labels: Arc<[(String, String)]>,
    #[cfg(feature = "http")]
    http: Option<Running>,
}

impl Services {
    /// `stop_asking` interrupts the questions of the reporter.
    #[cfg_attr(
        not(feature = "http"),
        expect(
            clippy::needless_pass_by_value,
            reason = "there is nothing in a listener then"
        )
    )]
    pub(crate) fn start(
        settings: &Settings,
        listener: Listener,
        mut reporter: ReporterParts,
        stop_asking: StopFlag,
    ) -> std::io::Result<Self> {
        let labels: Arc<[(String, String)]> = settings
            .labels
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut facade = Facade::new(&labels);
        reporter
            .viewers
            .push(Box::new(move |snapshot| facade.publish(snapshot)));
        reporter.viewers.extend(systemd::viewer());
        #[cfg(feature = "http")]
        if listener.server.is_some() {
            // So that the program's own metrics are on the page as well.
            recorder::install();
            reporter.viewers.push(upkeep());
        }
        #[cfg(feature = "http")]
        let (board, broke) = (
            Arc::clone(&reporter.shared.board),
            tells_of_a_panic(&reporter),
        );
        // Before anybody can ask: a scrape of the first moment finds its look.
        let reporter = ReporterThread::start(reporter)?;
        #[cfg(feature = "http")]
        let http = match listener.server {
            None => None,
            Some(server) => {
                let labels = Arc::clone(&labels);
                let pages = Pages {
                    board,
                    metrics: Box::new(move |snapshot, out| {
                        exposition::render(snapshot, &labels, out);
                        recorder::render_foreign(out);
                    }),
                };
                let running = server.start(pages, broke)?;
                tracing::info!(
                    target: LISTEN,
                    "listening at http://{}/",
                    running.local_addr()
                );
                Some(running)
            }
        };
        #[cfg(not(feature = "http"))]
        let Listener {} = listener;
        Ok(Self {
            reporter,
            stop_asking,
            labels,
            #[cfg(feature = "http")]
            http,
        })
    }

    /// A snapshot as Prometheus text.
    pub(crate) fn exposition(&self, snapshot: &LagSnapshot) -> String {
        let mut text = String::new();
        exposition::render(snapshot, &self.labels, &mut text);
        text
    }

    /// Where the endpoints are, if anywhere.
    #[cfg_attr(
        not(feature = "http"),
        expect(clippy::unused_self, reason = "there are none then")
    )]
    pub(crate) fn listens_at(&self) -> Option<SocketAddr> {
        #[cfg(feature = "http")]
        return self.http.as_ref().map(Running::local_addr);
        #[cfg(not(feature = "http"))]
        None
    }

    /// Ends and joins them.
    pub(crate) fn stop(&mut self) {
        self.stop_asking.stop();
        self.reporter.stop();
        #[cfg(feature = "http")]
        if let Some(http) = self.http.take() {
            http.stop(LAST_ANSWERS);
        }
    }
}

/// Says that nobody answers at the endpoints any more, to those who look
/// elsewhere. Whoever asks there finds out by itself.
#[cfg(feature = "http")]
fn tells_of_a_panic(reporter: &ReporterParts) -> Broke {
    let (shared, events) = (Arc::clone(&reporter.shared), reporter.events.clone());
    Box::new(move |panic| {
        let why = format!(
            "the thread keepup-http panicked: {panic}; nobody answers at its address any more, \
             while records are consumed on; start the process again, and please report this"
        );
        shared.set_broken(&why);
        events.warn(why);
    })
}

#[cfg(feature = "http")]
fn upkeep() -> crate::lag::reporter::Viewer {
    let mut looks = 0_u32;
    Box::new(move |_| {
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(UPKEEP_EVERY) {
            recorder::upkeep();
        }
    })
}
