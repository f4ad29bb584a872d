//! The sockets of fake brokers: what is asked there is answered as the script
//! says.
//!
//! A thread per broker takes connections, and a thread per connection answers
//! on it, one question after the other, as brokers do. They end with the
//! cluster: what waits for more records is woken, and what waits for a client
//! finds its connection closed.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::script::{Asked, Fault};
use super::state::State;
use crate::clock::Clock;
use crate::kafka::fake::{self, Answer, Head};

/// Longest request that is read.
const LONGEST_REQUEST: usize = 16 * 1024 * 1024;

/// Longest wait for a connection; a stop ends it.
const LOOK: Duration = Duration::from_secs(1);

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);

/// What all threads of a cluster share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Something changed that a fetch may wait for, or the cluster ends.
    changed: Condvar,
    stopped: AtomicBool,
    /// Open connections, to be closed at the end.
    open: Mutex<BTreeMap<u64, TcpStream>>,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            open: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes the state and wakes those who wait for news.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock());
        self.changed.notify_all();
        changed
    }

    /// Ends every wait and closes every connection, now and from now on.
    pub(super) fn stop(&self) {
        {
            let _state = self.state.lock();
            self.stopped.store(true, Ordering::Release);
        }
        self.changed.notify_all();
        for stream in self.open.lock().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Remembers a connection; false where there are to be none any more.
    fn enter(&self, number: u64, stream: &TcpStream) -> bool {
        let mut open = self.open.lock();
        let Ok(handle) = stream.try_clone() else {
            return false;
        };
        open.insert(number, handle);
        !self.is_stopped()
    }

    fn leave(&self, number: u64) {
        if let Some(stream) = self.open.lock().remove(&number) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The answer to a request, with what it is to suffer; `Err` is what is
    /// wrong with the request.
    fn reply(
        &self,
        broker: i32,
        head: Head,
        body: &Bytes,
        software: &mut String,
    ) -> Result<(Vec<u8>, Option<Fault>), String> {
        let mut state = self.state.lock();
        state.count(broker, head.request, head.version);
        let mut answer = fake::answer(head, body, broker, &mut state)?;
        if let Some(name) = answer.software.take().filter(|_| software.is_empty()) {
            state.connected(broker, &name);
            *software = name;
        }
        let fault = state.script.take(&Asked {
            broker,
            request: head.request,
            version: head.version,
            software: software.clone(),
            has_records: answer.has_records(),
        });
        match fault {
            None => self.await_news(&mut state, &mut answer, head, body, broker)?,
            Some(fault) => answer.spoil(fault, &state),
        }
        let mut bytes = answer.encode()?;
        if let Some(fault) = fault {
            answer.mangle(fault, &mut bytes, &mut state.random);
        }
        Ok((bytes, fault))
    }

    /// The long poll: as long as there is nothing, for the time that was asked.
    fn await_news(
        &self,
        state: &mut MutexGuard<'_, State>,
        answer: &mut Answer,
        head: Head,
        body: &Bytes,
        broker: i32,
    ) -> Result<(), String> {
        let Some(wait) = answer.may_wait else {
            return Ok(());
        };
        let deadline = Clock::System.now() + wait;
        while answer.may_wait.is_some() && !self.is_stopped() {
            if self.changed.wait_until(state, deadline).timed_out() {
                break;
            }
            *answer = fake::answer(head, body, broker, state)?;
        }
        Ok(())
    }
}

/// One broker: its thread that takes connections.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) id: i32,
    pub(super) port: u16,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Listens on a free port of the loopback interface.
    pub(super) fn start(id: i32, shared: &Arc<Shared>) -> io::Result<Self> {
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let port = listener.local_addr()?.port();
        let poll = Poll::new()?;
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(registry, STOP)?;
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name(format!("fake-broker-{id}"))
            .spawn(move || take_connections(&listener, poll, id, &shared))?;
        Ok(Self {
            id,
            port,
            waker,
            thread: Some(thread),
        })
    }

    /// Joins its threads; the cluster was stopped before.
    pub(super) fn join(&mut self) {
        if let Err(error) = self.waker.wake() {
            tracing::debug!(%error, "a fake broker looks for its end by itself");
        }
        join(self.thread.take());
    }
}

fn join(thread: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in thread {
        if thread.join().is_err() {
            tracing::error!("a thread of a fake broker has panicked");
        }
    }
}

fn take_connections(listener: &TcpListener, mut poll: Poll, broker: i32, shared: &Arc<Shared>) {
    let mut events = Events::with_capacity(8);
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let mut number = 0;
    while !shared.is_stopped() {
        let Ok((stream, _)) = listener.accept() else {
            // Nobody is there, or the system has no more sockets for now.
            let _ = poll.poll(&mut events, Some(LOOK));
            continue;
        };
        number += 1;
        let key = (u64::from(broker.unsigned_abs()) << 32) | number;
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name(format!("fake-broker-{broker}-{number}"))
            .spawn(move || {
                let stream = TcpStream::from(stream);
                if shared.enter(key, &stream)
                    && let Err(error) = serve(stream, broker, &shared)
                {
                    tracing::debug!(broker, %error, "a connection of a fake broker ended");
                }
                shared.leave(key);
            });
        let (ended, running): (Vec<_>, _) = threads.into_iter().partition(JoinHandle::is_finished);
        threads = running;
        join(ended);
        threads.extend(thread);
    }
    join(threads);
}

/// Answers what comes on a connection until its end.
fn serve(mut stream: TcpStream, broker: i32, shared: &Shared) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut software = String::new();
    while let Some(mut frame) = receive(&mut stream)? {
        let replied = fake::head(&mut frame)
            .and_then(|head| shared.reply(broker, head, &frame, &mut software));
        match replied {
            Ok((bytes, fault)) => {
                if !send(&mut stream, &bytes, fault, shared)? {
                    break;
                }
            }
            Err(what) => {
                shared.state().complain(format!("broker {broker}: {what}"));
                break;
            }
        }
    }
    Ok(())
}

/// The next request; `None` where the client has closed.
fn receive(stream: &mut TcpStream) -> io::Result<Option<Bytes>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = usize::try_from(i32::from_be_bytes(length))
        .ok()
        .filter(|&length| length <= LONGEST_REQUEST)
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    Ok(Some(frame.into()))
}

/// Sends an answer; false where the connection is to be closed then.
fn send(
    stream: &mut TcpStream,
    bytes: &[u8],
    fault: Option<Fault>,
    shared: &Shared,
) -> io::Result<bool> {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    let frame = |length: i32, bytes: &[u8]| [&length.to_be_bytes()[..], bytes].concat();
    match fault {
        Some(Fault::Close) => return Ok(false),
        Some(Fault::HalfAnswer) => {
            let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
            stream.write_all(&frame(length, half))?;
            return Ok(false);
        }
        Some(Fault::Stall) => {
            until_closed(stream)?;
            return Ok(false);
        }
        Some(Fault::FrameOf(length)) => {
            let number = bytes.get(..4).unwrap_or_default();
            stream.write_all(&frame(length, number))?;
            until_closed(stream)?;
            return Ok(false);
        }
        Some(Fault::Drip(pause)) => {
            for byte in frame(length, bytes) {
                stream.write_all(&[byte])?;
                let mut state = shared.state();
                let until = Clock::System.now() + pause;
                while !shared.is_stopped() {
                    if shared.changed.wait_until(&mut state, until).timed_out() {
                        break;
                    }
                }
                if shared.is_stopped() {
                    return Ok(false);
                }
            }
        }
        _ => stream.write_all(&frame(length, bytes))?,
    }
    Ok(true)
}

/// Says nothing until the client gives up, or the cluster ends.
fn until_closed(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(|_| ())
}
