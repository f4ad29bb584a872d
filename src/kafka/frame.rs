//! Requests to bytes, bytes to frames, frames to answers.
//!
//! Everything here is a function of bytes: the blocking [`Connection`] and the
//! event loop of the fetch source share it, and neither a socket nor a thread
//! is needed to test it.
//!
//! A frame is four bytes of length and that many bytes of header and body. What
//! comes from the wire is believed in nothing: the length is compared with a
//! limit before memory is asked for, memory grows with what has arrived, the
//! body is walked by [`super::shape`] before it is decoded, and an answer must
//! carry the number of the request that it is taken for.
//!
//! [`Connection`]: super::connection::Connection

use std::io::{self, Read};

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::RequestHeader;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::messages::{Api, ApiVersions, Request};
use super::shape::{self, Answer, Misfit};

/// Why bytes could not be made or understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error(
        "the peer announces an answer of {length} bytes where {limit} are accepted: either it is no Kafka broker, or the limit on answers is too low"
    )]
    FrameTooLong { length: i64, limit: usize },
    #[error(
        "the peer speaks TLS, which was not expected: set security.protocol to ssl or sasl_ssl, or \
         use a listener without TLS"
    )]
    SpeaksTls,
    #[error("the {api} answer (version {version}) is damaged: {misfit}")]
    Misfit {
        api: Api,
        version: i16,
        misfit: Misfit,
    },
    #[error("the {api} answer (version {version}) cannot be read: {what}")]
    Malformed {
        api: Api,
        version: i16,
        what: String,
    },
    #[error("the {api} request (version {version}) cannot be written: {what}")]
    Unwritable {
        api: Api,
        version: i16,
        what: String,
    },
    #[error(
        "an answer carries number {got} where {expected} was asked: the connection is out of step"
    )]
    OutOfStep { expected: i32, got: i32 },
    #[error("the {api} answer carries error code {code}, which keepup does not know")]
    UnknownErrorCode { api: Api, code: i16 },
    #[error(
        "the broker speaks versions {theirs:?} of {api}, keepup {ours:?}: keepup needs Apache Kafka 2.8 or later"
    )]
    NoCommonVersion {
        api: Api,
        ours: (i16, i16),
        theirs: Option<(i16, i16)>,
    },
}

/// Appends `request` as a whole frame to `out`, its length first.
///
/// # Errors
///
/// [`WireError::Unwritable`] where a field cannot be expressed in `version`;
/// `out` is then as it was.
pub(crate) fn encode<R: Request>(
    request: &R,
    version: i16,
    correlation: i32,
    client_id: &str,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let start = out.len();
    encode_after(request, version, correlation, client_id, out).inspect_err(|_| {
        out.truncate(start);
    })
}

fn encode_after<R: Request>(
    request: &R,
    version: i16,
    correlation: i32,
    client_id: &str,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let unwritable = |what: String| WireError::Unwritable {
        api: R::API,
        version,
        what,
    };
    let start = out.len();
    out.extend([0; 4]);
    RequestHeader::default()
        .with_request_api_key(R::API.key())
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some(StrBytes::from_string(client_id.to_owned())))
        .encode(out, if R::API.is_flexible(version) { 2 } else { 1 })
        .map_err(|error| unwritable(error.to_string()))?;
    request.put(version, out).map_err(unwritable)?;
    let length = i32::try_from(out.len() - start - 4)
        .map_err(|_| unwritable("it is longer than 2 GiB".to_owned()))?;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Reads the answer to request number `correlation` of type `R` from `frame`,
/// which is without its length. Bytes in the answer (records) are slices of the
/// frame: they keep it alive.
///
/// # Errors
///
/// Whatever does not read as the answer to that request. The connection it came
/// from cannot be trusted any further.
pub(crate) fn decode<R: Request>(
    mut frame: Bytes,
    version: i16,
    correlation: i32,
) -> Result<R::Answer, WireError> {
    take_header(&mut frame, R::API, version, correlation)?;
    R::take(frame, version)
}

/// Takes the header off an answer and compares its number.
fn take_header(
    frame: &mut Bytes,
    api: Api,
    version: i16,
    correlation: i32,
) -> Result<(), WireError> {
    let Ok(got) = frame.try_get_i32() else {
        return Err(WireError::Malformed {
            api,
            version,
            what: "it is shorter than its header".to_owned(),
        });
    };
    if got != correlation {
        return Err(WireError::OutOfStep {
            expected: correlation,
            got,
        });
    }
    // The answer to ApiVersions never has tagged fields in its header, so that
    // a client can read it from a broker of any version.
    if api.is_flexible(version) && api != Api::ApiVersions {
        let tags = shape::check_tags(frame).map_err(|misfit| WireError::Misfit {
            api,
            version,
            misfit,
        })?;
        frame.advance(tags);
    }
    Ok(())
}

/// What an ApiVersions answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Negotiated {
    /// The versions that the broker speaks.
    Versions(ApiVersions),
    /// The broker does not know the version of the question: ask in version 0.
    AskVersionZero,
}

/// The version of the first ApiVersions request on a connection.
pub(crate) const FIRST_API_VERSIONS: i16 = 3;

/// Reads an ApiVersions answer, which is special: a broker that does not know
/// the version answers with error 35 in the form of another version, which
/// need not even decode.
///
/// # Errors
///
/// As [`decode`]; [`WireError::Malformed`] where the broker reports an error.
pub(crate) fn decode_api_versions(
    mut frame: Bytes,
    version: i16,
    correlation: i32,
) -> Result<Negotiated, WireError> {
    use super::messages::ApiVersionsRequest;

    const UNSUPPORTED_VERSION: i16 = 35;
    take_header(&mut frame, Api::ApiVersions, version, correlation)?;
    let code = frame.clone().try_get_i16().unwrap_or(0);
    if code == UNSUPPORTED_VERSION && version > 0 {
        return Ok(Negotiated::AskVersionZero);
    }
    if let Some(error) = super::errors::ErrorCode::from_code(code) {
        return Err(WireError::Malformed {
            api: Api::ApiVersions,
            version,
            what: error.to_string(),
        });
    }
    ApiVersionsRequest::take(frame, version).map(Negotiated::Versions)
}

/// Walks a body along its shape, then decodes it.
pub(super) fn checked<T: Decodable>(
    mut body: Bytes,
    shape: &'static Answer,
    api: Api,
    version: i16,
) -> Result<T, WireError> {
    shape::check(&body, shape, version).map_err(|misfit| WireError::Misfit {
        api,
        version,
        misfit,
    })?;
    T::decode(&mut body, version).map_err(|error| WireError::Malformed {
        api,
        version,
        what: error.to_string(),
    })
}

/// Memory is asked for in steps of this much while a frame arrives.
const STEP: usize = 64 * 1024;

/// Assembles frames from a socket that gives what it has.
///
/// Memory follows what has arrived, at most doubling it: a peer that announces
/// much and sends little costs little.
#[derive(Debug)]
pub(crate) struct FrameReader {
    limit: usize,
    header: [u8; 4],
    header_len: usize,
    body: BytesMut,
    body_len: usize,
}

/// What one round of reading brought.
#[derive(Debug)]
pub(crate) enum Progress {
    /// A whole frame, without its length.
    Frame(Bytes),
    /// The socket has nothing more for now.
    Pending,
    /// The peer closed the connection.
    Closed,
}

/// Why a frame could not be read.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    Io(io::Error),
    Wire(WireError),
}

impl FrameReader {
    /// A reader that refuses frames longer than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            header: [0; 4],
            header_len: 0,
            body: BytesMut::new(),
            body_len: 0,
        }
    }

    /// Reads until a frame is whole or the socket would block.
    ///
    /// # Errors
    ///
    /// Errors of the socket other than "would block" and "interrupted", and a
    /// length that is negative or beyond the limit.
    pub(crate) fn read(&mut self, from: &mut impl Read) -> Result<Progress, ReadFailure> {
        loop {
            if self.header_len < 4 {
                match self.read_header(from)? {
                    Some(progress) => return Ok(progress),
                    None => continue,
                }
            }
            let expected = self.expected()?;
            if self.body_len == expected {
                self.header_len = 0;
                self.body_len = 0;
                let mut body = std::mem::take(&mut self.body);
                body.truncate(expected);
                return Ok(Progress::Frame(body.freeze()));
            }
            if self.body_len == self.body.len() {
                let grown = self.body_len + self.body_len.max(STEP);
                self.body.resize(grown.min(expected), 0);
            }
            match from.read(&mut self.body[self.body_len..]) {
                Ok(0) => return Ok(Progress::Closed),
                Ok(read) => self.body_len += read,
                Err(error) => {
                    if let Some(progress) = pending(error)? {
                        return Ok(progress);
                    }
                }
            }
        }
    }

    /// Reads towards the four bytes of length; `None` to go on.
    fn read_header(&mut self, from: &mut impl Read) -> Result<Option<Progress>, ReadFailure> {
        match from.read(&mut self.header[self.header_len..]) {
            Ok(0) => Ok(Some(Progress::Closed)),
            Ok(read) => {
                self.header_len += read;
                Ok(None)
            }
            Err(error) => pending(error),
        }
    }

    /// The announced length, if it is acceptable.
    fn expected(&self) -> Result<usize, ReadFailure> {
        announced(self.header, self.limit).map_err(ReadFailure::Wire)
    }
}

/// The length that a frame's first bytes announce.
///
/// # Errors
///
/// Where it is negative or beyond `limit`. A TLS port that is spoken to without
/// TLS answers with an alert, which is told apart.
pub(crate) fn announced(header: [u8; 4], limit: usize) -> Result<usize, WireError> {
    let length = i32::from_be_bytes(header);
    match usize::try_from(length) {
        Ok(expected) if expected <= limit => Ok(expected),
        _ if header.starts_with(&ALERT) => Err(WireError::SpeaksTls),
        _ => Err(WireError::FrameTooLong {
            length: length.into(),
            limit,
        }),
    }
}

/// How an alert begins, in every version of TLS.
const ALERT: [u8; 2] = [0x15, 0x03];

/// What an error of a read means for the round: nothing more for now, go on, or
/// the end.
fn pending(error: io::Error) -> Result<Option<Progress>, ReadFailure> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(Some(Progress::Pending)),
        io::ErrorKind::Interrupted => Ok(None),
        _ => Err(ReadFailure::Io(error)),
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A socket that gives one piece at a time and would block in between.
    struct Pieces {
        pieces: VecDeque<Vec<u8>>,
        blocked: bool,
    }

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.pieces.is_empty() {
                return Ok(0);
            }
            self.blocked = !self.blocked;
            if self.blocked {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let piece = &mut self.pieces[0];
            let count = piece.len().min(into.len());
            into[..count].copy_from_slice(&piece[..count]);
            piece.drain(..count);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            Ok(count)
        }
    }

    fn framed(bodies: &[&[u8]]) -> Vec<u8> {
        let mut wire = Vec::new();
        for body in bodies {
            wire.extend(i32::try_from(body.len()).unwrap().to_be_bytes());
            wire.extend(*body);
        }
        wire
    }

    #[test]
    fn frames_are_whole_however_the_socket_cuts_them() {
        let long = vec![7_u8; 3 * STEP + 11];
        let wire = framed(&[b"one", b"", &long]);
        for size in [1, 2, 3, 5, 1000, wire.len()] {
            let mut socket = Pieces {
                pieces: wire.chunks(size).map(<[u8]>::to_vec).collect(),
                blocked: false,
            };
            let mut reader = FrameReader::new(1 << 20);
            let mut frames = Vec::new();
            loop {
                match reader.read(&mut socket).unwrap() {
                    Progress::Frame(frame) => frames.push(frame),
                    Progress::Pending => {}
                    Progress::Closed => break,
                }
            }
            assert_eq!(frames, [&b"one"[..], b"", &long], "in pieces of {size}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_memory_is_asked_for() {
        for (wire, length) in [([0, 0, 4, 1], 1025_i64), ([0xff; 4], -1)] {
            let mut reader = FrameReader::new(1024);
            let failure = reader.read(&mut &wire[..]).unwrap_err();
            assert!(
                matches!(
                    failure,
                    ReadFailure::Wire(WireError::FrameTooLong { length: told, limit: 1024 })
                        if told == length
                ),
                "{failure:?}"
            );
            assert_eq!(reader.body.capacity(), 0);
        }
    }

    #[test]
    fn memory_follows_what_arrives_and_not_what_is_announced() {
        let mut wire = 90_000_000_i32.to_be_bytes().to_vec();
        wire.extend([0; 100]);
        let mut reader = FrameReader::new(100_000_000);
        assert!(matches!(
            reader.read(&mut &wire[..]).unwrap(),
            Progress::Closed
        ));
        assert!(reader.body.capacity() <= 2 * STEP);
    }
}
