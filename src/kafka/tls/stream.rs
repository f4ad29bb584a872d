//! One encrypted connection that never waits.
//!
//! rustls' own buffers are made for small messages: they read the socket in
//! steps of 4 KiB. Answers of megabytes want large reads, so what comes from the
//! socket lies in a buffer of ours, is decrypted there in place, record by
//! record, and goes from rustls' hands into the reader's buffer. What does not
//! fit there (of a record of which only a length was wanted) is kept aside.
//!
//! A connection that ends without TLS' own good-bye is taken as closed, not as
//! forged: whole answers are told by their lengths.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

use mio::net::TcpStream;
use rustls::Error;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};

use super::fault;
use crate::kafka::security::TlsFault;

/// Bytes read from a socket at once. A record of TLS has 16 KiB at most, so
/// what is left of a read to be joined with the next is a fraction.
const INCOMING: usize = 128 * 1024;

pub(crate) struct TlsStream {
    tls: UnbufferedClientConnection,
    incoming: Vec<u8>,
    /// What of it is not decrypted yet.
    start: usize,
    end: usize,
    /// Decrypted and not read yet, from `plain_start` on.
    plain: Vec<u8>,
    plain_start: usize,
    /// Encrypted and not sent yet, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// Handshake done.
    is_open: bool,
    is_closed: bool,
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("is_open", &self.is_open)
            .field("is_closed", &self.is_closed)
            .finish_non_exhaustive()
    }
}

/// What working on what has come led to.
enum Step {
    /// So many bytes for the reader.
    Plain(usize),
    /// Nothing more without more from the socket.
    Hungry,
}

impl TlsStream {
    pub(super) fn new(tls: UnbufferedClientConnection) -> Self {
        Self {
            tls,
            incoming: Vec::new(),
            start: 0,
            end: 0,
            plain: Vec::new(),
            plain_start: 0,
            outgoing: Vec::new(),
            sent: 0,
            is_open: false,
            is_closed: false,
        }
    }

    /// Goes on with the handshake; true where it is done and all of it is sent.
    pub(crate) fn handshake(&mut self, socket: &mut TcpStream) -> io::Result<bool> {
        loop {
            let worked = self.work(&mut []);
            // An alert of ours too.
            let sent = self.flush(socket);
            worked?;
            if self.is_open {
                return not_yet(sent);
            }
            sent.or_else(|error| match error.kind() {
                ErrorKind::WouldBlock => Ok(()),
                _ => Err(error),
            })?;
            if self.is_closed {
                return Err(carried(TlsFault::Closed));
            }
            match self.fill(socket) {
                Ok(0) => return Err(carried(TlsFault::Closed)),
                Ok(_) => {}
                Err(error) => return not_yet(Err(error)),
            }
        }
    }

    pub(crate) fn read(&mut self, socket: &mut TcpStream, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let waiting = &self.plain[self.plain_start..];
        if !waiting.is_empty() {
            let count = waiting.len().min(into.len());
            into[..count].copy_from_slice(&waiting[..count]);
            self.plain_start += count;
            if self.plain_start == self.plain.len() {
                self.plain.clear();
                self.plain_start = 0;
            }
            return Ok(count);
        }
        loop {
            let worked = self.work(into);
            if self.sent < self.outgoing.len() {
                // What the peer asked for, such as another key: as much as goes.
                match self.flush(socket) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                    _ => {}
                }
            }
            match worked? {
                Step::Plain(count) => return Ok(count),
                Step::Hungry if self.is_closed => return Ok(0),
                Step::Hungry => {
                    if self.fill(socket)? == 0 {
                        self.is_closed = true;
                    }
                }
            }
        }
    }

    /// Takes all of `bytes` once what was taken before is sent.
    pub(crate) fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        self.flush(socket)?;
        self.encrypt(bytes)?;
        match self.flush(socket) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(bytes.len()),
        }
    }

    /// Sends what is encrypted; "would block" where some of it stays.
    pub(crate) fn flush(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        while self.sent < self.outgoing.len() {
            match socket.write(&self.outgoing[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
                Err(error) => return Err(self.last_words(socket).unwrap_or(error)),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }

    /// Why the peer is gone, if it said so: a broker that refuses our
    /// certificate says it after our side of the handshake, and closes.
    fn last_words(&mut self, socket: &mut TcpStream) -> Option<io::Error> {
        while matches!(self.fill(socket), Ok(1..)) {}
        self.work(&mut []).err()
    }

    /// Reads from the socket: 0 at its end.
    fn fill(&mut self, socket: &mut TcpStream) -> io::Result<usize> {
        if self.incoming.is_empty() {
            self.incoming.resize(INCOMING, 0);
        }
        if self.start > 0 {
            self.incoming.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = &mut self.incoming[self.end..];
        if room.is_empty() {
            return Err(carried(TlsFault::Other(
                "a message of the handshake is longer than plausible".to_owned(),
            )));
        }
        loop {
            match socket.read(room) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => {
                    let count = read?;
                    self.end += count;
                    return Ok(count);
                }
            }
        }
    }

    /// Works on what has come, until `into` is full or more is needed.
    fn work(&mut self, into: &mut [u8]) -> io::Result<Step> {
        let mut filled = 0;
        loop {
            if filled > 0 && filled == into.len() {
                return Ok(Step::Plain(filled));
            }
            let bytes = &mut self.incoming[self.start..self.end];
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(bytes);
            let mut is_hungry = false;
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.start += discard;
                    self.say_why();
                    return Err(carried(fault(&error)));
                }
            };
            match state {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|error| carried(fault(&error)))?;
                        discard += record.discard;
                        let count = record.payload.len().min(into.len() - filled);
                        let (now, later) = record.payload.split_at(count);
                        into[filled..filled + count].copy_from_slice(now);
                        filled += count;
                        self.plain.extend_from_slice(later);
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut data, &mut self.outgoing);
                }
                // It is in our hands; that is as good as sent.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(_) => {
                    self.is_open = true;
                    is_hungry = true;
                }
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    self.is_closed = true;
                    is_hungry = true;
                }
                _ => is_hungry = true,
            }
            self.start += discard;
            if is_hungry {
                return Ok(match filled {
                    0 => Step::Hungry,
                    filled => Step::Plain(filled),
                });
            }
        }
    }

    /// Puts the alert that says what we did not like with what is to be sent.
    fn say_why(&mut self) {
        let bytes = &mut self.incoming[self.start..self.end];
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) =
            self.tls.process_tls_records(bytes).state
        {
            encode(&mut alert, &mut self.outgoing);
        }
    }

    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Up to the state in which it can be.
        self.work(&mut [])?;
        let incoming = &mut self.incoming[self.start..self.end];
        let UnbufferedStatus { discard, state } = self.tls.process_tls_records(incoming);
        let encrypted = match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => append(&mut self.outgoing, |room| {
                traffic.encrypt(bytes, room).map_err(|error| match error {
                    EncryptError::InsufficientSize(size) => Some(size.required_size),
                    EncryptError::EncryptExhausted => None,
                })
            }),
            Ok(_) => return Err(ErrorKind::NotConnected.into()),
            Err(error) => return Err(carried(fault(&error))),
        };
        self.start += discard;
        if encrypted {
            Ok(())
        } else {
            Err(carried(fault(&Error::EncryptError)))
        }
    }
}

fn encode(data: &mut EncodeTlsData<'_, ClientConnectionData>, out: &mut Vec<u8>) {
    append(out, |room| {
        data.encode(room).map_err(|error| match error {
            EncodeError::InsufficientSize(size) => Some(size.required_size),
            EncodeError::AlreadyEncoded => None,
        })
    });
}

/// What small messages take; room for more is made when it is asked for.
const ROOM: usize = 1_024;

/// Appends what `put` writes and counts; where it wants more room, it says so.
/// False where it writes nothing.
fn append(
    out: &mut Vec<u8>,
    mut put: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> bool {
    let start = out.len();
    let mut room = ROOM;
    loop {
        out.resize(start + room, 0);
        match put(&mut out[start..]) {
            Ok(count) => {
                out.truncate(start + count);
                return true;
            }
            Err(Some(needed)) if needed > room => room = needed,
            Err(_) => {
                out.truncate(start);
                return false;
            }
        }
    }
}

fn carried(fault: TlsFault) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, fault)
}

/// True where it is done, false where it would block.
fn not_yet(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
