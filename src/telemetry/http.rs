//! The endpoints of a run: `/metrics`, `/lag`, the health checks and the page.
//!
//! One thread serves them all, on a runtime of its own: nothing in here takes
//! longer than writing out a snapshot, and a consumer has better use for its
//! cores. What is asked for is answered from the [`Board`]; no request reaches
//! Kafka or a worker.
//!
//! Whoever reaches the address can read: topics, offsets and how far behind
//! they are, and nothing can be changed. Requests are therefore answered
//! whatever their `Host` says. A page elsewhere that makes a browser believe
//! that its name is ours can read what the browser's user can read; a check of
//! names would stop that, and every proxy in front as well. No answer has a
//! header that lets other origins read it.
//!
//! A health check must be answered while somebody holds connections open, or
//! the orchestrator restarts a process that works. So there are [`Limits`], and
//! where all connections are taken, or the answers that wait for slow readers
//! are too large together, a new one takes the place of that which asked for
//! something the longest time ago.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::json;
use crate::lag::LagSnapshot;
use crate::lag::board::Board;
use crate::worker::run::panic_message;

/// The page, with `{nonce}` where its style and its script begin.
const PAGE: &str = include_str!("page.html");

/// What there is, for those who ask for something else.
const PATHS: &str = "/\n/health/live\n/health/ready\n/history\n/lag\n/metrics\n";

/// What the text format of Prometheus is called.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The wait after a connection could not be accepted, which is so as long as
/// the process has no file descriptor left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(250);

/// How long dropping a server waits for its thread.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at a time.
    connections: usize,
    /// How long a connection may take for the head of a request, or do
    /// nothing.
    head_wait: Duration,
    /// Bytes of the head of a request; the largest that is read, so that
    /// anything longer is refused.
    head_bytes: usize,
    /// How long a connection is kept; a reader that is slower is cut off.
    lifetime: Duration,
    /// Bytes of the last answers of all connections together: what readers who
    /// do not read can make us hold.
    answer_bytes: u64,
    /// The thread panics with the next connection: what a test plants.
    #[cfg(test)]
    panics: bool,
}

impl Limits {
    const DEFAULT: Self = Self {
        connections: 64,
        head_wait: Duration::from_secs(5),
        head_bytes: 8 * 1024,
        lifetime: Duration::from_mins(1),
        answer_bytes: 16 << 20,
        #[cfg(test)]
        panics: false,
    };
}

/// Writes a snapshot's metrics.
pub(crate) type WriteMetrics = Box<dyn Fn(&LagSnapshot, &mut String) + Send + Sync>;

/// Is told with which words the thread panicked.
pub(crate) type Broke = Box<dyn FnOnce(&str) + Send>;

/// What the endpoints show.
pub(crate) struct Pages {
    pub(crate) board: Arc<Board>,
    pub(crate) metrics: WriteMetrics,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// An address that is taken, and not served yet.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
}

impl Server {
    /// Takes the address, so that one in use is found before anything starts.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            limits: Limits::DEFAULT,
        })
    }

    /// Where it listens: with the port that the system chose for port 0.
    #[cfg(test)]
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Starts to answer, on the thread `keepup-http`. `broke` is called where that
    /// panics, which is a mistake of ours.
    pub(crate) fn start(self, pages: Pages, broke: Broke) -> io::Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(self.listener)?
        };
        let (stop, stopped) = watch::channel(None);
        let (ended, end) = bounded(0);
        let router = router(Arc::new(pages));
        let limits = self.limits;
        let thread = std::thread::Builder::new()
            .name("keepup-http".into())
            .spawn(move || {
                // Dropped at the end of the thread, also by a panic.
                let _ended: crossbeam_channel::Sender<Infallible> = ended;
                // Dropped before that, with the connections that are left.
                let runtime = runtime;
                let serving = || serve(&runtime, listener, &router, limits, stopped);
                if let Err(panic) = catch_unwind(AssertUnwindSafe(serving)) {
                    broke(&panic_message(panic.as_ref()));
                }
            })?;
        Ok(Running {
            address: self.address,
            stop,
            end,
            thread: Some(thread),
        })
    }
}

/// A server that answers, until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Running {
    address: SocketAddr,
    /// How long the answers under way may take, once it shall stop.
    stop: watch::Sender<Option<Duration>>,
    end: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, gives the answers under way half of `patience`, and
    /// waits for the thread, `patience` at most.
    pub(crate) fn stop(mut self, patience: Duration) {
        self.join(patience / 2, patience);
    }

    fn join(&mut self, grace: Duration, patience: Duration) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.stop.send_replace(Some(grace));
        match self.end.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) => tracing::warn!(
                "the HTTP server did not end within {patience:?}; its thread is left behind"
            ),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => {
                if thread.join().is_err() {
                    tracing::error!("the HTTP server had panicked");
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.join(Duration::ZERO, DROP_PATIENCE);
    }
}

/// The body of the thread.
fn serve(
    runtime: &Runtime,
    listener: tokio::net::TcpListener,
    router: &Router,
    limits: Limits,
    mut stop: watch::Receiver<Option<Duration>>,
) {
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        let places = Arc::new(Places::default());
        let stopping = stop.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        #[cfg(test)]
                        assert!(!limits.panics, "planted");
                        places.make_room(limits.connections);
                        let ticket = Ticket::new(&places);
                        let number = ticket.number;
                        let task = connections.spawn(connection(
                            stream,
                            ticket,
                            router.clone(),
                            limits,
                            stopping.clone(),
                        ));
                        places.take(number, task);
                    }
                    Err(error) if concerns_one_connection(&error) => {}
                    Err(error) => {
                        tracing::warn!("a connection cannot be accepted: {error}");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = stop.wait_for(Option::is_some) => break,
            }
        }
        drop(listener);
        let grace = stop.borrow().unwrap_or_default();
        let all = async { while connections.join_next().await.is_some() {} };
        // What is left is cut off when the set is dropped.
        let _ = tokio::time::timeout(grace, all).await;
    });
}

/// True for errors that the next connection need not have.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// The connections there are, by when they last asked for something.
#[derive(Debug, Default)]
struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// The number of the next connection.
    next: u64,
    /// Raised by every request.
    turn: u64,
    places: BTreeMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    /// The turn of its last request.
    turn: u64,
    /// The size of its last answer. Whether that was taken is not known, so it
    /// counts until there is another one.
    answer_bytes: u64,
    task: AbortHandle,
}

impl Taken {
    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    fn answer_bytes(&self) -> u64 {
        self.places.values().map(|place| place.answer_bytes).sum()
    }

    /// Ends the connection that asked for something the longest time ago.
    fn end_the_oldest(&mut self) {
        let by_turn = |(_, place): &(&u64, &Place)| place.turn;
        let oldest = self.places.iter().min_by_key(by_turn);
        let oldest = oldest.map(|(&number, _)| number);
        if let Some(place) = oldest.and_then(|number| self.places.remove(&number)) {
            place.task.abort();
        }
    }
}

impl Places {
    /// Ends connections until there are fewer than `limit`.
    fn make_room(&self, limit: usize) {
        let mut taken = self.0.lock();
        while !taken.places.is_empty() && taken.places.len() >= limit {
            taken.end_the_oldest();
        }
    }

    fn take(&self, number: u64, task: AbortHandle) {
        let mut taken = self.0.lock();
        let turn = taken.next_turn();
        let place = Place {
            turn,
            answer_bytes: 0,
            task,
        };
        taken.places.insert(number, place);
    }

    /// A connection asks for something.
    fn asks(&self, number: u64) {
        let mut taken = self.0.lock();
        let turn = taken.next_turn();
        if let Some(place) = taken.places.get_mut(&number) {
            place.turn = turn;
            place.answer_bytes = 0;
        }
    }

    /// A connection is about to get so much. Others end until all together is
    /// below `limit`.
    fn gets(&self, number: u64, bytes: u64, limit: u64) {
        let mut taken = self.0.lock();
        if let Some(place) = taken.places.get_mut(&number) {
            place.answer_bytes = bytes;
        }
        while taken.places.len() > 1 && taken.answer_bytes() > limit {
            taken.end_the_oldest();
        }
    }
}

/// A connection's claim to its place; given back when it is dropped.
#[derive(Debug)]
struct Ticket {
    number: u64,
    places: Arc<Places>,
}

impl Ticket {
    fn new(places: &Arc<Places>) -> Self {
        let mut taken = places.0.lock();
        taken.next += 1;
        Self {
            number: taken.next,
            places: Arc::clone(places),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.places.0.lock().places.remove(&self.number);
    }
}

/// One connection, from its first byte to its last.
async fn connection(
    stream: TcpStream,
    ticket: Ticket,
    router: Router,
    limits: Limits,
    mut stop: watch::Receiver<Option<Duration>>,
) {
    let service = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
        ticket.places.asks(ticket.number);
        let answer = hyper::service::Service::call(&service, request);
        async {
            let answer = answer.await?;
            let bytes = answer.body().size_hint().lower();
            ticket
                .places
                .gets(ticket.number, bytes, limits.answer_bytes);
            Ok::<Response, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_wait)
        .max_buf_size(limits.head_bytes);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
    let whole = async {
        // Between two answers where possible: so a client that keeps its
        // connection is told to open another one.
        let retire = tokio::time::sleep(limits.lifetime / 2);
        tokio::select! {
            ended = served.as_mut() => return ended,
            () = retire => {}
            _ = stop.wait_for(Option::is_some) => {}
        }
        served.as_mut().graceful_shutdown();
        served.await
    };
    match tokio::time::timeout(limits.lifetime, whole).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection ended: {error}"),
        Err(_) => tracing::debug!("a connection was cut off after {:?}", limits.lifetime),
    }
}

fn router(pages: Arc<Pages>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/lag", get(lag))
        .route("/history", get(history))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .method_not_allowed_fallback(only_reads)
        .fallback(not_found)
        .layer(axum::middleware::map_response(closed_to_others))
        .layer(axum::middleware::from_fn(without_body))
        .with_state(pages)
}

/// A body is never read: the connection is closed instead, after the answer.
async fn without_body(request: Request, next: axum::middleware::Next) -> Response {
    let has_body = !request.body().is_end_stream();
    let mut response = next.run(request).await;
    if has_body {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// What every answer says: it is of now, it is what it says it is, and it is
/// for no other site.
async fn closed_to_others(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 4] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    let mut text = String::new();
    (pages.metrics)(&pages.board.latest(), &mut text);
    ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

async fn lag(State(pages): State<Arc<Pages>>) -> Response {
    as_json(json::lag(&pages.board.latest(), std::process::id()))
}

/// `after=N`: only what came after column N.
async fn history(State(pages): State<Arc<Pages>>, RawQuery(query): RawQuery) -> Response {
    let after = query
        .as_deref()
        .and_then(|query| query.strip_prefix("after="))
        .and_then(|number| number.parse().ok());
    let since = pages.board.since(after);
    as_json(json::history(&since, &pages.board.latest()))
}

fn as_json(document: serde_json::Result<Vec<u8>>) -> Response {
    match document {
        Ok(document) => ([(header::CONTENT_TYPE, "application/json")], document).into_response(),
        Err(error) => {
            tracing::error!("a document cannot be written: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn live(State(pages): State<Arc<Pages>>) -> Response {
    health(&pages.board.latest().health.not_live)
}

async fn ready(State(pages): State<Arc<Pages>>) -> Response {
    health(pages.board.latest().health.not_ready.as_slice())
}

/// 200 where nothing speaks against it, else 503 with a reason on each line.
fn health(reasons: &[String]) -> Response {
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    let mut text = String::new();
    for reason in reasons {
        text.extend(reason.chars().map(|c| if c.is_control() { ' ' } else { c }));
        text.push('\n');
    }
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn page() -> Response {
    // Nothing from outside is ever put into the page's text, so nobody gains
    // from guessing it: it is there so that the policy can refuse all else.
    let nonce = format!("{:032x}", fastrand::u128(..));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, PAGE.replace("{nonce}", &nonce)).into_response()
}

async fn not_found() -> Response {
    let text = format!("not found; there are:\n{PATHS}");
    (StatusCode::NOT_FOUND, text).into_response()
}

async fn only_reads(method: Method) -> Response {
    let text = format!("{method} is not known here; GET and HEAD are\n");
    (StatusCode::METHOD_NOT_ALLOWED, text).into_response()
}

#[cfg(test)]
mod tests;
