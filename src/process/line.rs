//! Messages as bytes: a length of four bytes, most significant first, and that
//! many bytes of postcard.
//!
//! The other end is a process that may die in the middle of a write, or be
//! broken: a length is looked at before anything is reserved for it, and what
//! does not decode ends the line.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message. The largest there is tells of the partitions of one
/// child, [`LANES_AT_A_TIME`](super::message::LANES_AT_A_TIME) at a time.
pub(crate) const LONGEST: usize = 8 * 1024 * 1024;

const LENGTH_BYTES: usize = 4;

/// Why a line is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("a message of {bytes} bytes was announced, and {LONGEST} are the most there is")]
    TooLong { bytes: usize },
    #[error("a message of {bytes} bytes is none: {error}")]
    Garbage {
        bytes: usize,
        error: postcard::Error,
    },
    #[error("the line ended in the middle of a message, {bytes} bytes into it")]
    CutOff { bytes: usize },
    #[error("the line broke: {0}")]
    Io(#[from] std::io::Error),
}

/// Appends a message.
pub(crate) fn write<T: Serialize>(into: &mut Vec<u8>, message: &T) -> Result<(), LineError> {
    let begin = into.len();
    into.extend([0; LENGTH_BYTES]);
    let written = postcard::to_extend(message, std::mem::take(into));
    *into = written.map_err(|error| LineError::Garbage { bytes: 0, error })?;
    let bytes = into.len() - begin - LENGTH_BYTES;
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= LONGEST);
    let (Some(length), Some(place)) = (length, into.get_mut(begin..begin + LENGTH_BYTES)) else {
        into.truncate(begin);
        return Err(LineError::TooLong { bytes });
    };
    place.copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Bytes that came, until they are messages.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
    taken: usize,
}

impl Incoming {
    /// Adds what came.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        } else if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        let waiting = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let bytes = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if bytes > LONGEST {
            return Err(LineError::TooLong { bytes });
        }
        let Some(message) = rest.get(..bytes) else {
            return Ok(None);
        };
        let (message, left) = postcard::take_from_bytes(message)
            .map_err(|error| LineError::Garbage { bytes, error })?;
        if !left.is_empty() {
            let error = postcard::Error::DeserializeBadEncoding;
            return Err(LineError::Garbage { bytes, error });
        }
        self.taken += LENGTH_BYTES + bytes;
        Ok(Some(message))
    }

    /// The other end has closed: an error where it did so within a message.
    pub(crate) fn end(&self) -> Result<(), LineError> {
        match self.bytes.len() - self.taken {
            0 => Ok(()),
            bytes => Err(LineError::CutOff { bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(incoming: &mut Incoming) -> Vec<String> {
        std::iter::from_fn(|| incoming.next().expect("they are messages")).collect()
    }

    proptest! {
        #[test]
        fn messages_come_whole_and_in_order_however_the_bytes_are_cut(
            messages in prop::collection::vec(".{0,200}", 0..20),
            cuts in prop::collection::vec(1_usize..300, 1..40),
        ) {
            let mut bytes = Vec::new();
            for message in &messages {
                write(&mut bytes, message).expect("it is short");
            }
            let mut incoming = Incoming::default();
            let mut got = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                incoming.push(now);
                got.extend(all(&mut incoming));
                rest = later;
            }
            prop_assert_eq!(got, messages);
            prop_assert!(incoming.end().is_ok());
        }

        #[test]
        fn rubbish_is_an_error_or_waits_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut incoming = Incoming::default();
            incoming.push(&bytes);
            while let Ok(Some(_)) = incoming.next::<super::super::message::ToParent>() {}
        }
    }

    #[test]
    fn a_length_that_nobody_sends_is_refused_before_memory_is_reserved() {
        let mut incoming = Incoming::default();
        incoming.push(&[0xff, 0xff, 0xff, 0xff, 1, 2]);
        let refused = incoming.next::<String>().expect_err("that is 4 GiB");
        assert!(matches!(refused, LineError::TooLong { bytes: 0xffff_ffff }));
    }

    #[test]
    fn what_is_left_over_behind_a_message_is_not_passed_over() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"abc").expect("it is short");
        bytes.push(7);
        bytes[3] += 1;
        let mut incoming = Incoming::default();
        incoming.push(&bytes);
        assert!(matches!(
            incoming.next::<String>(),
            Err(LineError::Garbage { bytes: 5, .. })
        ));
    }

    #[test]
    fn a_line_that_ends_within_a_message_says_so() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"half of it").expect("it is short");
        let mut incoming = Incoming::default();
        incoming.push(&bytes[..6]);
        assert_eq!(all(&mut incoming), Vec::<String>::new());
        assert!(matches!(
            incoming.end(),
            Err(LineError::CutOff { bytes: 6 })
        ));
    }
}
