//! What carries the bytes of a connection: TCP, or TLS over it.
//!
//! Never waits: what cannot be done now is "would block", as on the socket
//! itself. The blocking connection and the event loop of the fetch source share
//! it. What TLS refuses is an [`io::Error`] that carries a [`TlsFault`];
//! [`broken`] takes it out again.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

use super::connection::ConnectionError;
use super::security::{Security, TlsFault};
use super::tls::TlsStream;

/// A connected socket, encrypted or not.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: TcpStream,
    tls: Option<Box<TlsStream>>,
}

impl Transport {
    /// A transport to `host`, whose certificate must be for that name.
    pub(crate) fn new(
        socket: TcpStream,
        security: &Security,
        host: &str,
    ) -> Result<Self, TlsFault> {
        let tls = match &security.tls {
            Some(tls) => Some(Box::new(tls.open(host)?)),
            None => None,
        };
        Ok(Self { socket, tls })
    }

    /// Goes on with the handshake; true where it is complete, and requests may
    /// be written.
    pub(crate) fn handshake(&mut self) -> io::Result<bool> {
        match &mut self.tls {
            Some(tls) => tls.handshake(&mut self.socket),
            None => Ok(true),
        }
    }

    /// Takes bytes to be sent, all or some.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.write(&mut self.socket, bytes),
            None => self.socket.write(bytes),
        }
    }

    /// Sends what was taken and is not sent yet: "would block" while there is
    /// any.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.flush(&mut self.socket),
            None => Ok(()),
        }
    }
}

impl Read for Transport {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.read(&mut self.socket, into),
            None => self.socket.read(into),
        }
    }
}

/// An error of a transport, as one of the connection to `address`.
pub(crate) fn broken(address: String, error: io::Error) -> ConnectionError {
    match error.downcast::<TlsFault>() {
        Ok(fault) => ConnectionError::Tls { address, fault },
        Err(error) => ConnectionError::Io { address, error },
    }
}
