//! One connection to one broker, as the event loop sees it.
//!
//! A [`Link`] never waits: it writes what the socket takes, reads what has
//! arrived, and says what came of it. At most one request is under way on it,
//! as brokers answer the requests of a connection one after the other anyway.
//!
//! Answers are read into recycled buffers. The announced length is compared
//! with the limit before anything else, and reserves nothing: a buffer grows
//! with what has arrived. An answer that is longer than what was asked for and
//! does not fit into the source's share either waits, unread, until it is the
//! only such answer in the process.

use std::io::{self, ErrorKind, Read};
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::buffers::{Buffer, BufferPool};
use crate::kafka::ConnectionSettings;
use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::BrokerAddress;
use crate::kafka::connection::ConnectionError;
use crate::kafka::frame::{self, WireError};
use crate::kafka::greeting::{Greeted, Greeting, GreetingFault};
use crate::kafka::messages::{Api, FetchAnswer, FetchRequest};
use crate::kafka::transport::{Transport, broken};

/// Between attempts to reach a broker that is down: at first as often as a
/// broker that restarts deserves, later as one that is gone.
const RECONNECT: Backoff = Backoff {
    first: std::time::Duration::from_millis(50),
    max: std::time::Duration::from_secs(2),
};

/// Between attempts to reach a broker that does not trust us, or that we do not
/// trust: until somebody changes that, every attempt only fills its log.
const REFUSED: Backoff = Backoff {
    first: std::time::Duration::from_secs(1),
    max: std::time::Duration::from_secs(15),
};

/// What an answer exceeds what was asked for by: headers, and the numbers of
/// some hundred partitions.
const ENVELOPE: usize = 64 * 1024;

/// An answer that brings less than this within the request timeout is given up:
/// a broker that hands it out byte by byte would hold up all its partitions.
/// Less than what a socket keeps for a reader that is slow itself.
const LEAST_PROGRESS: usize = 16 * 1024;

/// Lets one oversized answer at a time into the process.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<AtomicBool>);

/// The right to hold an oversized answer, until dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicBool>);

impl Gate {
    fn enter(&self) -> Option<Permit> {
        (!self.0.swap(true, Ordering::AcqRel)).then(|| Permit(Arc::clone(&self.0)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What a link needs of its source to make progress.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) now: Instant,
    pub(super) settings: &'a ConnectionSettings,
    pub(super) registry: &'a Registry,
    pub(super) pool: &'a BufferPool,
    pub(super) gate: &'a Gate,
    /// The source's share of the memory budget.
    pub(super) share: usize,
}

/// A connection to a broker, or the intention to have one.
#[derive(Debug)]
pub(super) struct Link {
    address: BrokerAddress,
    token: Token,
    state: State,
    /// In a row, without an answer in between.
    failures: u32,
    /// The last of them because of a certificate or a password.
    is_refused: bool,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Down,
    Connecting {
        stream: TcpStream,
        since: Instant,
    },
    /// Connected, and shaking hands where that is the custom.
    Shaking {
        transport: Transport,
        since: Instant,
    },
    /// Greeting, or over with it.
    Up(Box<Wire>),
}

#[derive(Debug)]
struct Wire {
    transport: Transport,
    greeting: Greeting,
    correlation: i32,
    out: Vec<u8>,
    written: usize,
    awaited: Option<Awaited>,
    /// The socket may have something, or room for something.
    is_readable: bool,
    is_writable: bool,
    /// The length; before a length that is not accepted is believed also the
    /// number of the answer, which tells a long answer from no answer at all.
    header: [u8; 8],
    header_len: usize,
    body: Option<Body>,
}

/// Bytes of a frame's length, and with the number behind it.
const LENGTH: usize = 4;
const LENGTH_AND_NUMBER: usize = 8;

/// An answer that is being read.
#[derive(Debug)]
struct Body {
    buffer: Buffer,
    len: usize,
}

/// An answer that has to come.
#[derive(Debug)]
struct Awaited {
    /// Of the Fetch request; `None` where it belongs to the greeting.
    version: Option<i16>,
    /// Of the answer, in bytes, where the broker keeps to what was asked.
    expected: usize,
    asked_at: Instant,
    deadline: Instant,
    /// Bytes that came since the deadline was last put off.
    came: usize,
}

/// What came of letting a link make progress.
#[derive(Debug)]
pub(super) enum Driven {
    Nothing,
    /// The link can take requests from now on.
    Ready,
    Answer(FetchAnswer),
    /// An answer waits for others to leave the memory.
    Blocked,
}

impl Link {
    pub(super) fn new(address: BrokerAddress, token: Token) -> Self {
        Self {
            address,
            token,
            state: State::Down,
            failures: 0,
            is_refused: false,
            retry_at: None,
        }
    }

    pub(super) fn address(&self) -> &BrokerAddress {
        &self.address
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    /// How often in a row it failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether it takes a request now.
    pub(super) fn is_ready(&self) -> bool {
        matches!(&self.state, State::Up(wire) if wire.greeting.is_over() && wire.awaited.is_none())
    }

    /// The socket reported something.
    pub(super) fn notice(&mut self, is_readable: bool, is_writable: bool) {
        if let State::Up(wire) = &mut self.state {
            wire.is_readable |= is_readable;
            wire.is_writable |= is_writable;
        }
    }

    /// When it has to be looked at again, whatever the socket says.
    pub(super) fn next_moment(&self, settings: &ConnectionSettings) -> Option<Instant> {
        match &self.state {
            State::Down => self.retry_at,
            State::Connecting { since, .. } => Some(*since + settings.connect_timeout),
            State::Shaking { since, .. } => Some(*since + settings.request_timeout),
            State::Up(wire) => wire.awaited.as_ref().map(|awaited| awaited.deadline),
        }
    }

    /// Begins to connect, unless it is connected or has to wait; where it is
    /// time to, says again who we are.
    ///
    /// # Errors
    ///
    /// Where the address leads nowhere; the link waits before it tries again.
    pub(super) fn connect(&mut self, around: &Surroundings<'_>) -> Result<(), ConnectionError> {
        let is_due = self.retry_at.is_none_or(|moment| moment <= around.now);
        if matches!(self.state, State::Down) && is_due {
            match self.dial(around) {
                Ok(stream) => {
                    self.state = State::Connecting {
                        stream,
                        since: around.now,
                    };
                }
                Err(error) => {
                    self.fail(around.now);
                    return Err(error);
                }
            }
        }
        if let State::Up(wire) = &mut self.state
            && wire.awaited.is_none()
            && wire.greeting.renew_if_due(around.now)
        {
            // A socket that does not take it reports that, and is driven.
            let _ = wire.greet(around);
        }
        Ok(())
    }

    fn dial(&self, around: &Surroundings<'_>) -> Result<TcpStream, ConnectionError> {
        let unresolved = |error| ConnectionError::Resolve {
            address: self.address.to_string(),
            error,
        };
        // The system's resolver bounds this wait by itself; an address that is
        // a number does not wait.
        let resolved: Vec<_> = (&*self.address.host, self.address.port)
            .to_socket_addrs()
            .map_err(unresolved)?
            .collect();
        // One after the other, an attempt each.
        let index = self.failures as usize % resolved.len().max(1);
        let socket = resolved.get(index).ok_or_else(|| {
            unresolved(io::Error::new(
                ErrorKind::NotFound,
                "no address behind the name",
            ))
        })?;
        let refused = |error| ConnectionError::Connect {
            address: self.address.to_string(),
            error,
        };
        let mut stream = TcpStream::connect(*socket).map_err(refused)?;
        around
            .registry
            .register(
                &mut stream,
                self.token,
                Interest::READABLE | Interest::WRITABLE,
            )
            .map_err(refused)?;
        Ok(stream)
    }

    /// Gives the connection up; the next attempt is made after a back-off.
    pub(super) fn fail(&mut self, now: Instant) {
        self.state = State::Down;
        self.failures = self.failures.saturating_add(1);
        let backoff = if self.is_refused { REFUSED } else { RECONNECT };
        self.retry_at = Some(now + backoff.random_delay(self.failures));
    }

    /// Gives up the connection to a broker whose answer carried an error code
    /// that says nothing; tells it as an error.
    pub(super) fn distrust(&mut self, code: i16, now: Instant) -> ConnectionError {
        self.fail(now);
        let api = Api::Fetch;
        Fault::Wire(WireError::UnknownErrorCode { api, code }).at(&self.address)
    }

    /// Gives up a connection that was not in use: the next attempt may be made
    /// at once.
    fn forget(&mut self) {
        self.state = State::Down;
    }

    /// Sends a request. To be called where [`Link::is_ready`].
    ///
    /// # Errors
    ///
    /// Where the request cannot be written; the connection is then of no use.
    pub(super) fn send(
        &mut self,
        request: &FetchRequest,
        around: &Surroundings<'_>,
    ) -> Result<(), ConnectionError> {
        let State::Up(wire) = &mut self.state else {
            return Ok(());
        };
        wire.ask(request, around)
            .map_err(|fault| fault.at(&self.address))
    }

    /// Makes what progress can be made now.
    ///
    /// # Errors
    ///
    /// The connection is of no use any more. [`Link::fail`] is left to the
    /// caller, who knows what was asked.
    pub(super) fn drive(&mut self, around: &Surroundings<'_>) -> Result<Driven, ConnectionError> {
        let driven = match std::mem::replace(&mut self.state, State::Down) {
            State::Down => Ok(Driven::Nothing),
            State::Connecting { stream, since } => self.connected(stream, since, around),
            State::Shaking { transport, since } => self.shake(transport, since, around),
            State::Up(mut wire) => {
                let was_idle = wire.awaited.is_none();
                match wire.drive(around) {
                    Ok(driven) => {
                        self.state = State::Up(wire);
                        // To tell its versions is not yet to serve: a broker that
                        // fails with every request would be back at once.
                        if matches!(driven, Driven::Answer(_)) {
                            self.failures = 0;
                            self.is_refused = false;
                        }
                        Ok(driven)
                    }
                    // Brokers close what lies idle.
                    Err(Fault::Closed | Fault::Io(_)) if was_idle => {
                        self.forget();
                        Ok(Driven::Nothing)
                    }
                    Err(fault) => Err(fault.at(&self.address)),
                }
            }
        };
        if let Err(error) = &driven {
            self.is_refused = error.is_refusal();
        }
        driven
    }

    fn connected(
        &mut self,
        stream: TcpStream,
        since: Instant,
        around: &Surroundings<'_>,
    ) -> Result<Driven, ConnectionError> {
        let refused = |error| ConnectionError::Connect {
            address: self.address.to_string(),
            error,
        };
        if let Some(error) = stream.take_error().map_err(refused)? {
            return Err(refused(error));
        }
        match stream.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotConnected => {
                if around.now >= since + around.settings.connect_timeout {
                    return Err(ConnectionError::TimedOut {
                        address: self.address.to_string(),
                        what: "take the connection",
                        waited: around.settings.connect_timeout,
                    });
                }
                self.state = State::Connecting { stream, since };
                return Ok(Driven::Nothing);
            }
            Err(error) => return Err(refused(error)),
        }
        stream.set_nodelay(true).map_err(refused)?;
        let transport = Transport::new(stream, &around.settings.security, &self.address.host)
            .map_err(|fault| ConnectionError::Tls {
                address: self.address.to_string(),
                fault,
            })?;
        self.shake(transport, around.now, around)
    }

    fn shake(
        &mut self,
        mut transport: Transport,
        since: Instant,
        around: &Surroundings<'_>,
    ) -> Result<Driven, ConnectionError> {
        let is_done = transport
            .handshake()
            .map_err(|error| broken(self.address.to_string(), error))?;
        if !is_done {
            if around.now >= since + around.settings.request_timeout {
                return Err(ConnectionError::TimedOut {
                    address: self.address.to_string(),
                    what: "complete the TLS handshake",
                    waited: around.settings.request_timeout,
                });
            }
            self.state = State::Shaking { transport, since };
            return Ok(Driven::Nothing);
        }
        let mut wire = Box::new(Wire {
            transport,
            greeting: Greeting::new(&around.settings.security),
            correlation: 0,
            out: Vec::new(),
            written: 0,
            awaited: None,
            // What came before this moment was reported to nobody.
            is_readable: true,
            is_writable: true,
            header: [0; LENGTH_AND_NUMBER],
            header_len: 0,
            body: None,
        });
        wire.greet(around)
            .map_err(|fault| fault.at(&self.address))?;
        self.state = State::Up(wire);
        Ok(Driven::Nothing)
    }
}

/// What goes wrong on a connection, before it is known whose it is.
#[derive(Debug)]
enum Fault {
    Closed,
    Io(io::Error),
    Wire(WireError),
    Greeting(GreetingFault),
    TimedOut(std::time::Duration),
}

impl Fault {
    fn at(self, address: &BrokerAddress) -> ConnectionError {
        let address = address.to_string();
        match self {
            Self::Closed => ConnectionError::Closed { address },
            Self::Io(error) => broken(address, error),
            Self::Wire(error) => ConnectionError::Wire { address, error },
            Self::Greeting(fault) => fault.at(address),
            Self::TimedOut(waited) => ConnectionError::TimedOut {
                address,
                what: "answer",
                waited,
            },
        }
    }
}

/// What reading brought.
enum Arrival {
    /// Not all of it is there yet.
    Pending,
    /// It has to wait for memory.
    Blocked,
    Frame(Bytes),
}

impl Wire {
    /// Sends a Fetch request.
    fn ask(&mut self, request: &FetchRequest, around: &Surroundings<'_>) -> Result<(), Fault> {
        let version = self
            .greeting
            .versions()
            .pick_at_most(Api::Fetch, request.highest_version())
            .map_err(Fault::Wire)?;
        self.begin(around, Some(version));
        if let Some(awaited) = &mut self.awaited {
            awaited.deadline += request.max_wait;
            awaited.expected = usize::try_from(request.max_bytes).unwrap_or(0);
        }
        frame::encode(
            request,
            version,
            self.correlation,
            &around.settings.client_id,
            &mut self.out,
        )
        .map_err(Fault::Wire)?;
        self.write()
    }

    /// Sends the next request of the greeting.
    fn greet(&mut self, around: &Surroundings<'_>) -> Result<(), Fault> {
        self.begin(around, None);
        self.greeting
            .write(self.correlation, &around.settings.client_id, &mut self.out)
            .map_err(Fault::Greeting)?;
        self.write()
    }

    /// Makes room for the next request, and expects its answer.
    fn begin(&mut self, around: &Surroundings<'_>, version: Option<i16>) {
        self.correlation = self.correlation.wrapping_add(1);
        self.out.clear();
        self.written = 0;
        self.awaited = Some(Awaited {
            version,
            expected: usize::MAX,
            asked_at: around.now,
            deadline: around.now + around.settings.request_timeout,
            came: 0,
        });
    }

    fn write(&mut self) -> Result<(), Fault> {
        loop {
            let sent = match self.out.get(self.written..) {
                Some(rest) if !rest.is_empty() => self.transport.write(rest),
                _ => match self.transport.flush() {
                    Ok(()) => return Ok(()),
                    Err(error) => Err(error),
                },
            };
            match sent {
                Ok(0) => return Err(Fault::Closed),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_writable = false;
                    return Ok(());
                }
                Err(error) => return Err(Fault::Io(error)),
            }
        }
    }

    fn drive(&mut self, around: &Surroundings<'_>) -> Result<Driven, Fault> {
        if self.is_writable {
            self.write()?;
        }
        if !self.is_readable {
            return self.check_deadline(around, 0);
        }
        if self.awaited.is_none() {
            return self.look_whether_closed();
        }
        let before = self.progress();
        match self.read(around)? {
            Arrival::Pending => {
                let came = self.progress().saturating_sub(before);
                self.check_deadline(around, came)
            }
            Arrival::Blocked => Ok(Driven::Blocked),
            Arrival::Frame(frame) => self.take(frame, around),
        }
    }

    fn progress(&self) -> usize {
        self.header_len + self.body.as_ref().map_or(0, |body| body.buffer.len())
    }

    /// Whether the answer is overdue. An answer of which much keeps coming is
    /// not, however long it takes: it may be us who read slowly.
    fn check_deadline(&mut self, around: &Surroundings<'_>, came: usize) -> Result<Driven, Fault> {
        if let Some(awaited) = &mut self.awaited {
            awaited.came += came;
            if awaited.came >= LEAST_PROGRESS {
                awaited.came = 0;
                awaited.deadline = around.now + around.settings.request_timeout;
            } else if around.now >= awaited.deadline {
                return Err(Fault::TimedOut(
                    around.now.saturating_duration_since(awaited.asked_at),
                ));
            }
        }
        Ok(Driven::Nothing)
    }

    /// Nothing was asked: all that a broker can do is close.
    fn look_whether_closed(&mut self) -> Result<Driven, Fault> {
        let mut byte = [0];
        match self.transport.read(&mut byte) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_readable = false;
                Ok(Driven::Nothing)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Driven::Nothing),
            // Bytes that nobody asked for are no better than none.
            Ok(_) => Err(Fault::Closed),
            Err(error) => Err(Fault::Io(error)),
        }
    }

    fn take(&mut self, frame: Bytes, around: &Surroundings<'_>) -> Result<Driven, Fault> {
        let Some(awaited) = self.awaited.take() else {
            return Err(Fault::Closed);
        };
        if let Some(version) = awaited.version {
            return frame::decode::<FetchRequest>(frame, version, self.correlation)
                .map(Driven::Answer)
                .map_err(Fault::Wire);
        }
        let greeted = self
            .greeting
            .answer(frame, self.correlation, around.now, fastrand::f64())
            .map_err(Fault::Greeting)?;
        match greeted {
            Greeted::Open => Ok(Driven::Ready),
            Greeted::OpenAgain => {
                tracing::debug!("authenticated again");
                Ok(Driven::Ready)
            }
            Greeted::GoOn => {
                self.greet(around)?;
                Ok(Driven::Nothing)
            }
        }
    }

    fn read(&mut self, around: &Surroundings<'_>) -> Result<Arrival, Fault> {
        loop {
            let Some(body) = &mut self.body else {
                let wanted = self.header_wanted(around);
                let Some(rest) = self.header.get_mut(self.header_len..wanted) else {
                    return Err(Fault::Closed);
                };
                if !rest.is_empty() {
                    match receive(&mut self.transport, rest)? {
                        None => {
                            self.is_readable = false;
                            return Ok(Arrival::Pending);
                        }
                        Some(count) => self.header_len += count,
                    }
                    continue;
                }
                match self.open_body(around)? {
                    Some(body) => self.body = Some(body),
                    None => return Ok(Arrival::Blocked),
                }
                continue;
            };
            let missing = body.len - body.buffer.len();
            if missing == 0 {
                self.header_len = 0;
                return Ok(self.body.take().map_or(Arrival::Pending, |body| {
                    Arrival::Frame(body.buffer.freeze())
                }));
            }
            // Only what belongs to this answer, whatever room there is.
            let spare = body.buffer.spare(1);
            let room = spare.len().min(missing);
            let room = spare.get_mut(..room).unwrap_or_default();
            match receive(&mut self.transport, room)? {
                None => {
                    self.is_readable = false;
                    return Ok(Arrival::Pending);
                }
                Some(count) => body.buffer.advance(count),
            }
        }
    }

    /// The length that the answer says it has, where that has been read.
    fn announced(&self) -> Option<[u8; LENGTH]> {
        let length = self.header.first_chunk();
        length.filter(|_| self.header_len >= LENGTH).copied()
    }

    /// How much has to be read before the body.
    fn header_wanted(&self, around: &Surroundings<'_>) -> usize {
        let limit = around.settings.max_frame;
        let announced = self
            .announced()
            .map(|length| frame::announced(length, limit));
        if let Some(Err(WireError::FrameTooLong { length: 0.., .. })) = announced {
            LENGTH_AND_NUMBER
        } else {
            LENGTH
        }
    }

    /// Why an answer is not accepted: its length, unless it is none at all.
    fn refused(&self, error: WireError) -> Fault {
        let number = self.header.last_chunk();
        let got = number.map_or(self.correlation, |number| i32::from_be_bytes(*number));
        Fault::Wire(match error {
            WireError::FrameTooLong { length: 0.., .. } if got != self.correlation => {
                WireError::OutOfStep {
                    expected: self.correlation,
                    got,
                }
            }
            error => error,
        })
    }

    /// Decides on an answer whose length has just been read: none where it has
    /// to wait.
    fn open_body(&self, around: &Surroundings<'_>) -> Result<Option<Body>, Fault> {
        let limit = around.settings.max_frame;
        let len = frame::announced(self.announced().unwrap_or_default(), limit)
            .map_err(|error| self.refused(error))?;
        let held = around.pool.held();
        let expected = self
            .awaited
            .as_ref()
            .map_or(usize::MAX, |awaited| awaited.expected);
        let is_oversized = len > expected.saturating_add(ENVELOPE) && held + len > around.share;
        let permit = is_oversized.then(|| around.gate.enter());
        if let Some(None) = permit {
            return Ok(None);
        }
        let mut buffer = around.pool.take(len);
        if let Some(permit) = permit.flatten() {
            buffer.attach(permit);
        }
        Ok(Some(Body { buffer, len }))
    }
}

/// Reads what is there; none where nothing is.
fn receive(transport: &mut Transport, into: &mut [u8]) -> Result<Option<usize>, Fault> {
    loop {
        match transport.read(into) {
            Ok(0) => return Err(Fault::Closed),
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(Fault::Io(error)),
        }
    }
}

#[cfg(test)]
mod tests;
