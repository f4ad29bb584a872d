//! One connection to one broker: a question, its answer, and never a wait
//! without an end.
//!
//! The system's blocking sockets can wait for a connection or for bytes, but a
//! stop cannot interrupt them. So the socket does not block, and every wait is
//! a poll of at most [`SLICE`] followed by a look at the stop flag and at the
//! deadline. The one wait that cannot be interrupted is the resolution of a
//! host name, which the system's resolver bounds by itself.
//!
//! After an error a connection is of no use: what is in it may belong to the
//! question that failed. Its owner drops it.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::ConnectionSettings;
use super::cluster::BrokerAddress;
use super::frame::{self, FrameReader, Progress, ReadFailure, WireError};
use super::greeting::{Greeted, Greeting, GreetingFault};
use super::messages::Request;
use super::sasl::SaslFault;
use super::security::TlsFault;
use super::transport::{Transport, broken};
use crate::clock::Clock;

/// Longest time that a stop goes unnoticed.
const SLICE: Duration = Duration::from_millis(50);

/// Interrupts the waits of the connections that share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Ends every wait, now and from now on.
    pub(crate) fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why a broker could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the address {address:?} is not of the form host:port")]
    Address { address: String },
    #[error("the host name of {address} cannot be resolved: {error}")]
    Resolve { address: String, error: io::Error },
    #[error("{address} does not take connections: {error}")]
    Connect { address: String, error: io::Error },
    #[error("{address} did not {what} within {waited:?}")]
    TimedOut {
        address: String,
        what: &'static str,
        waited: Duration,
    },
    #[error(
        "{address} closed the connection; if it always does, its listener may expect TLS or SASL"
    )]
    Closed { address: String },
    #[error("the connection to {address} broke: {error}")]
    Io { address: String, error: io::Error },
    #[error("{address}: {error}")]
    Wire { address: String, error: WireError },
    #[error("no TLS with {address}: {fault}")]
    Tls { address: String, fault: TlsFault },
    #[error("{address} does not authenticate us: {fault}")]
    Sasl { address: String, fault: SaslFault },
    #[error("stopped while waiting for {address}")]
    Stopped { address: String },
}

impl ConnectionError {
    /// True for what a connection suffers that lay idle too long.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Io { .. })
    }

    /// True where nothing is wrong with the connection: the broker does not
    /// know the request, or not in a version that can express it.
    pub(crate) fn is_unspoken(&self) -> bool {
        matches!(
            self,
            Self::Wire {
                error: WireError::NoCommonVersion { .. },
                ..
            }
        )
    }

    /// True where the two ends do not trust each other: trying again does not
    /// help until somebody changes a certificate, a password or a setting.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Tls { fault, .. } => fault.is_refusal(),
            Self::Sasl { fault, .. } => fault.is_refusal(),
            Self::Wire { error, .. } => matches!(error, WireError::SpeaksTls),
            _ => false,
        }
    }
}

/// Splits `host:port`. A scheme in front is accepted as librdkafka does, a
/// missing port means 9092, and IPv6 addresses stand in brackets.
pub(crate) fn parse_address(address: &str) -> Result<BrokerAddress, ConnectionError> {
    let wrong = || ConnectionError::Address {
        address: address.to_owned(),
    };
    let rest = address.trim();
    let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
    let (host, port) = if let Some(rest) = rest.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
        }
    } else {
        match rest.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            Some(_) => return Err(wrong()),
            None => (rest, None),
        }
    };
    if host.is_empty() {
        return Err(wrong());
    }
    let port = match port {
        None => 9092,
        Some(port) => port.parse().map_err(|_| wrong())?,
    };
    Ok(BrokerAddress {
        host: Arc::from(host),
        port,
    })
}

/// A connection that knows which versions its broker speaks.
#[derive(Debug)]
pub(crate) struct Connection {
    address: String,
    transport: Transport,
    waiter: Waiter,
    reader: FrameReader,
    greeting: Greeting,
    client_id: String,
    correlation: i32,
    out: Vec<u8>,
}

/// Waits for a socket in slices.
#[derive(Debug)]
struct Waiter {
    poll: Poll,
    events: Events,
    clock: Clock,
    stop: StopFlag,
}

/// How a wait ended.
enum Waited {
    /// Something may have happened.
    Perhaps,
    Deadline,
    Stopped,
}

impl Waiter {
    fn new(clock: Clock, stop: StopFlag) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(4),
            clock,
            stop,
        })
    }

    /// Waits until the socket reports something, a slice at most.
    fn wait(&mut self, deadline: Instant) -> io::Result<Waited> {
        if self.stop.is_stopped() {
            return Ok(Waited::Stopped);
        }
        let left = deadline.saturating_duration_since(self.clock.now());
        if left.is_zero() {
            return Ok(Waited::Deadline);
        }
        match self.poll.poll(&mut self.events, Some(left.min(SLICE))) {
            Ok(()) => Ok(Waited::Perhaps),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Waited::Perhaps),
            Err(error) => Err(error),
        }
    }
}

impl Connection {
    /// Connects to the first address behind a name that answers, shakes hands
    /// and greets.
    ///
    /// # Errors
    ///
    /// The last address's error, after `connect_timeout` for each of them and
    /// `request_timeout` for the handshake and the greeting together.
    pub(crate) fn open(
        to: &BrokerAddress,
        settings: &ConnectionSettings,
        clock: &Clock,
        stop: &StopFlag,
    ) -> Result<Self, ConnectionError> {
        let address = to.to_string();
        let resolved =
            (&*to.host, to.port)
                .to_socket_addrs()
                .map_err(|error| ConnectionError::Resolve {
                    address: address.clone(),
                    error,
                })?;
        let mut last = ConnectionError::Resolve {
            address: address.clone(),
            error: io::Error::new(io::ErrorKind::NotFound, "no address behind the name"),
        };
        for socket in resolved {
            match connect(socket, &address, settings, clock, stop) {
                Ok((stream, waiter)) => {
                    let transport =
                        Transport::new(stream, &settings.security, &to.host).map_err(|fault| {
                            ConnectionError::Tls {
                                address: address.clone(),
                                fault,
                            }
                        })?;
                    let mut connection = Self {
                        address,
                        transport,
                        waiter,
                        reader: FrameReader::new(settings.max_frame),
                        greeting: Greeting::new(&settings.security),
                        client_id: settings.client_id.clone(),
                        correlation: 0,
                        out: Vec::new(),
                    };
                    let deadline = clock.now() + settings.request_timeout;
                    connection.shake_hands(deadline)?;
                    connection.greet(deadline)?;
                    return Ok(connection);
                }
                Err(error @ ConnectionError::Stopped { .. }) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether a run can do with this broker.
    ///
    /// # Errors
    ///
    /// Where there is no common version of a request that it cannot do without.
    pub(crate) fn check_versions(&self) -> Result<(), ConnectionError> {
        let versions = self.greeting.versions();
        versions.check().map_err(|error| self.wire(error))
    }

    /// Sends a request in the highest version that both sides speak and waits
    /// for its answer.
    ///
    /// # Errors
    ///
    /// Any; the connection is of no use afterwards, except where no common
    /// version exists.
    pub(crate) fn ask<R: Request>(
        &mut self,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Answer, ConnectionError> {
        if self.greeting.renew_if_due(self.waiter.clock.now()) {
            self.greet(deadline)?;
        }
        let version = self
            .greeting
            .versions()
            .pick_at_least(R::API, request.lowest_version())
            .map_err(|error| self.wire(error))?;
        self.next_request();
        frame::encode(
            request,
            version,
            self.correlation,
            &self.client_id,
            &mut self.out,
        )
        .map_err(|error| self.wire(error))?;
        let frame = self.exchange(deadline)?;
        frame::decode::<R>(frame, version, self.correlation).map_err(|error| self.wire(error))
    }

    fn shake_hands(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        let begin = self.waiter.clock.now();
        while !self.transport.handshake().map_err(|error| self.io(error))? {
            self.wait("complete the TLS handshake", begin, deadline)?;
        }
        Ok(())
    }

    fn greet(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        loop {
            self.next_request();
            self.greeting
                .write(self.correlation, &self.client_id, &mut self.out)
                .map_err(|fault| fault.at(self.address.clone()))?;
            let frame = self.exchange(deadline)?;
            let now = self.waiter.clock.now();
            let greeted = self
                .greeting
                .answer(frame, self.correlation, now, fastrand::f64())
                .map_err(|fault| fault.at(self.address.clone()))?;
            match greeted {
                Greeted::GoOn => {}
                Greeted::Open => return Ok(()),
                Greeted::OpenAgain => {
                    tracing::debug!(address = self.address, "authenticated again");
                    return Ok(());
                }
            }
        }
    }

    fn next_request(&mut self) {
        self.correlation = self.correlation.wrapping_add(1);
        self.out.clear();
    }

    /// Sends the frame that is written, and waits for the next.
    fn exchange(&mut self, deadline: Instant) -> Result<bytes::Bytes, ConnectionError> {
        let asked_at = self.waiter.clock.now();
        let mut written = 0;
        loop {
            let sent = match self.out.get(written..) {
                Some(rest) if !rest.is_empty() => self.transport.write(rest),
                _ => match self.transport.flush() {
                    Ok(()) => break,
                    Err(error) => Err(error),
                },
            };
            match sent {
                Ok(0) => return Err(self.closed()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait("take the request", asked_at, deadline)?;
                }
                Err(error) => return Err(self.io(error)),
            }
        }
        loop {
            match self.reader.read(&mut self.transport) {
                Ok(Progress::Frame(frame)) => return Ok(frame),
                Ok(Progress::Pending) => self.wait("answer", asked_at, deadline)?,
                Ok(Progress::Closed) => return Err(self.closed()),
                Err(ReadFailure::Io(error)) => return Err(self.io(error)),
                Err(ReadFailure::Wire(error)) => return Err(self.wire(error)),
            }
        }
    }

    fn wait(
        &mut self,
        what: &'static str,
        since: Instant,
        deadline: Instant,
    ) -> Result<(), ConnectionError> {
        match self.waiter.wait(deadline) {
            Ok(Waited::Perhaps) => Ok(()),
            Ok(Waited::Deadline) => Err(ConnectionError::TimedOut {
                address: self.address.clone(),
                what,
                waited: deadline.saturating_duration_since(since),
            }),
            Ok(Waited::Stopped) => Err(ConnectionError::Stopped {
                address: self.address.clone(),
            }),
            Err(error) => Err(self.io(error)),
        }
    }

    fn wire(&self, error: WireError) -> ConnectionError {
        ConnectionError::Wire {
            address: self.address.clone(),
            error,
        }
    }

    fn io(&self, error: io::Error) -> ConnectionError {
        broken(self.address.clone(), error)
    }

    fn closed(&self) -> ConnectionError {
        ConnectionError::Closed {
            address: self.address.clone(),
        }
    }
}

impl GreetingFault {
    /// As an error of the connection to `address`.
    pub(crate) fn at(self, address: String) -> ConnectionError {
        match self {
            Self::Wire(error) => ConnectionError::Wire { address, error },
            Self::Sasl(fault) => ConnectionError::Sasl { address, fault },
        }
    }
}

/// Connects to one address.
fn connect(
    socket: SocketAddr,
    address: &str,
    settings: &ConnectionSettings,
    clock: &Clock,
    stop: &StopFlag,
) -> Result<(TcpStream, Waiter), ConnectionError> {
    let refused = |error| ConnectionError::Connect {
        address: address.to_owned(),
        error,
    };
    let deadline = clock.now() + settings.connect_timeout;
    let mut waiter = Waiter::new(clock.clone(), stop.clone()).map_err(refused)?;
    let mut stream = TcpStream::connect(socket).map_err(refused)?;
    waiter
        .poll
        .registry()
        .register(
            &mut stream,
            Token(0),
            Interest::READABLE | Interest::WRITABLE,
        )
        .map_err(refused)?;
    loop {
        match waiter.wait(deadline).map_err(refused)? {
            Waited::Perhaps => {}
            Waited::Deadline => {
                return Err(ConnectionError::TimedOut {
                    address: address.to_owned(),
                    what: "take the connection",
                    waited: settings.connect_timeout,
                });
            }
            Waited::Stopped => {
                return Err(ConnectionError::Stopped {
                    address: address.to_owned(),
                });
            }
        }
        if let Some(error) = stream.take_error().map_err(refused)? {
            return Err(refused(error));
        }
        match stream.peer_addr() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => return Err(refused(error)),
        }
    }
    stream.set_nodelay(true).map_err(refused)?;
    Ok((stream, waiter))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::kafka::messages::{CoordinatorRequest, MetadataRequest};

    fn settings() -> ConnectionSettings {
        ConnectionSettings {
            request_timeout: Duration::from_millis(400),
            connect_timeout: Duration::from_millis(400),
            max_frame: 1 << 20,
            ..ConnectionSettings::new(Vec::new())
        }
    }

    fn open(address: &str) -> Result<Connection, ConnectionError> {
        Connection::open(
            &parse_address(address)?,
            &settings(),
            &Clock::System,
            &StopFlag::default(),
        )
    }

    /// A peer that does as told with the first connection it gets.
    fn peer(
        act: impl FnOnce(&mut std::net::TcpStream) + Send + 'static,
    ) -> (String, thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let thread = thread::Builder::new()
            .name("test-peer".to_owned())
            .spawn(move || act(&mut listener.accept().unwrap().0))
            .unwrap();
        (address, thread)
    }

    #[test]
    fn addresses_are_read_as_operators_write_them() {
        for (written, host, port) in [
            ("broker:9093", "broker", 9093),
            ("broker", "broker", 9092),
            (" PLAINTEXT://broker:1 ", "broker", 1),
            ("[::1]:9094", "::1", 9094),
            ("[::1]", "::1", 9092),
        ] {
            let address = parse_address(written).unwrap();
            assert_eq!((&*address.host, address.port), (host, port), "{written}");
        }
        for wrong in [
            "",
            ":9092",
            "a:b",
            "a:70000",
            "::1:9092",
            "[::1",
            "[::1]9092",
        ] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_broker_is_asked_in_the_versions_that_it_speaks() {
        let cluster = MockCluster::new(2).unwrap();
        cluster.create_topic("orders", 4, 1).unwrap();
        let bootstrap = cluster.bootstrap_servers();
        let mut connection = open(bootstrap.split(',').next().unwrap()).unwrap();
        let deadline = Clock::System.now() + Duration::from_secs(5);
        let metadata = connection
            .ask(
                &MetadataRequest {
                    topics: vec![Arc::from("orders")],
                },
                deadline,
            )
            .unwrap();
        assert_eq!(metadata.brokers.len(), 2);
        assert_eq!(metadata.topics[0].partitions.len(), 4);
        let coordinator = connection
            .ask(
                &CoordinatorRequest {
                    group: "g".to_owned(),
                },
                deadline,
            )
            .unwrap();
        assert_eq!(coordinator.error, 0);
    }

    #[test]
    fn a_port_where_nobody_listens_is_named_in_the_error() {
        let (address, thread) = peer(|_| {});
        drop(std::net::TcpStream::connect(&address).unwrap());
        thread.join().unwrap();
        let error = open(&address).unwrap_err();
        assert!(matches!(error, ConnectionError::Connect { .. }), "{error}");
        assert!(error.to_string().contains(&address));
    }

    #[test]
    fn a_peer_that_says_nothing_costs_the_request_timeout_and_no_more() {
        let (done, held) = crossbeam_channel::bounded::<()>(1);
        let (address, thread) = peer(move |_| {
            let _ = held.recv_timeout(Duration::from_secs(10));
        });
        let begin = Clock::System.now();
        let error = open(&address).unwrap_err();
        let waited = Clock::System.now() - begin;
        assert!(
            matches!(error, ConnectionError::TimedOut { what: "answer", .. }),
            "{error}"
        );
        assert!(waited >= Duration::from_millis(400) && waited < Duration::from_secs(3));
        drop(done);
        thread.join().unwrap();
    }

    #[test]
    fn a_stop_interrupts_a_wait_at_once() {
        let (asked, heard) = crossbeam_channel::bounded::<()>(1);
        let (done, held) = crossbeam_channel::bounded::<()>(1);
        let (address, thread) = peer(move |stream| {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            asked.send(()).unwrap();
            let _ = held.recv_timeout(Duration::from_secs(30));
        });
        let stop = StopFlag::default();
        let flag = stop.clone();
        let waiting = thread::Builder::new()
            .name("test-waiting".to_owned())
            .spawn(move || {
                let settings = ConnectionSettings {
                    request_timeout: Duration::from_mins(1),
                    ..settings()
                };
                Connection::open(
                    &parse_address(&address).unwrap(),
                    &settings,
                    &Clock::System,
                    &flag,
                )
            })
            .unwrap();
        heard.recv_timeout(Duration::from_secs(10)).unwrap();
        let begin = Clock::System.now();
        stop.stop();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, ConnectionError::Stopped { .. }), "{error}");
        assert!(Clock::System.now() - begin < Duration::from_secs(1));
        drop(done);
        thread.join().unwrap();
    }

    #[test]
    fn what_is_no_broker_is_told_by_its_first_bytes() {
        let (address, thread) = peer(|stream| {
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .unwrap();
            // Until the client has closed: a reset could overtake the bytes.
            let _ = io::copy(stream, &mut io::sink());
        });
        let error = open(&address).unwrap_err();
        assert!(
            matches!(
                error,
                ConnectionError::Wire {
                    error: WireError::FrameTooLong { .. },
                    ..
                }
            ),
            "{error}"
        );
        thread.join().unwrap();
    }

    #[test]
    fn an_answer_to_another_question_is_refused() {
        let (address, thread) = peer(|stream| {
            stream.write_all(&[0, 0, 0, 6, 0, 0, 0, 77, 0, 0]).unwrap();
            let _ = io::copy(stream, &mut io::sink());
        });
        let error = open(&address).unwrap_err();
        assert!(
            matches!(
                error,
                ConnectionError::Wire {
                    error: WireError::OutOfStep {
                        expected: 1,
                        got: 77
                    },
                    ..
                }
            ),
            "{error}"
        );
        thread.join().unwrap();
    }

    #[test]
    fn a_peer_that_hangs_up_is_told_from_one_that_is_slow() {
        let (address, thread) = peer(|stream| {
            let mut request = [0; 16];
            stream.read_exact(&mut request).unwrap();
        });
        let error = open(&address).unwrap_err();
        assert!(error.is_stale(), "{error}");
        thread.join().unwrap();
    }
}
