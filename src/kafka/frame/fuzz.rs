//! What must hold of everything that arrives on a connection, whatever it is.

use std::io::{self, Read};

use bytes::Bytes;

use super::{FrameReader, Progress, ReadFailure, WireError, decode_api_versions, take_header};
use crate::kafka::messages::fuzz::{chosen, survives};

/// Frames of more than this are refused.
const LIMIT: usize = 4096;

/// Bytes that come in pieces of the given lengths, with nothing in between.
struct Socket<'a> {
    bytes: &'a [u8],
    pieces: std::iter::Cycle<std::slice::Iter<'a, u8>>,
    is_ready: bool,
}

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.is_ready = !self.is_ready;
        if !self.is_ready {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let piece = self.pieces.next().map_or(1, |piece| usize::from(*piece));
        let mut piece = self.bytes.take(piece.max(1) as u64);
        let read = piece.read(into)?;
        self.bytes = self.bytes.get(read..).unwrap_or_default();
        Ok(read)
    }
}

/// A stream of frames, cut as the first eight bytes say. The claims: each frame
/// is what its length announced, in order; nothing longer than the limit is
/// taken; memory is bounded by that limit; and all of it ends. Each frame is then read as an answer of the kind
/// that its number chooses.
pub(crate) fn frames(data: &[u8]) {
    let Some((pieces, stream)) = data.split_first_chunk::<8>() else {
        return;
    };
    let mut socket = Socket {
        bytes: stream,
        pieces: pieces.iter().cycle(),
        is_ready: false,
    };
    let mut reader = FrameReader::new(LIMIT);
    let mut rest = stream;
    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(rounds <= 2 * stream.len() + 4, "reading leads nowhere");
        let progress = reader.read(&mut socket);
        assert!(reader.body.capacity() <= 2 * LIMIT, "memory is not bounded");
        match progress {
            Ok(Progress::Pending) => {}
            Ok(Progress::Frame(frame)) => {
                let (expected, tail) = front(rest).unwrap_or_default();
                assert_eq!(frame, expected, "a frame is not what was sent");
                rest = tail;
                read_as_answer(frame);
            }
            Ok(Progress::Closed) => {
                assert!(front(rest).is_none(), "a whole frame is lost");
                return;
            }
            Err(ReadFailure::Wire(WireError::FrameTooLong { length, limit })) => {
                assert!(length < 0 || length > i64::try_from(limit).unwrap_or(i64::MAX));
                return;
            }
            // A length that is too long as well, and looks like an alert.
            Err(ReadFailure::Wire(WireError::SpeaksTls)) => return,
            Err(failure) => panic!("an error of another kind: {failure:?}"),
        }
    }
}

/// The frame at the front of `stream`, and what follows it.
fn front(stream: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = stream.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(i32::from_be_bytes(*length)).ok()?)
}

/// The last two bytes of its number choose what it answers.
fn read_as_answer(mut frame: Bytes) {
    let Some(number @ [_, _, key, version]) = frame.first_chunk::<4>().copied() else {
        return;
    };
    let number = i32::from_be_bytes(number);
    let (api, version) = chosen(key, version);
    let _ = decode_api_versions(frame.clone(), 3, number);
    if take_header(&mut frame, api, version, number).is_ok() {
        survives(api, &frame, version);
    }
}
