//! What must hold of a conversation, whatever the broker says.

use std::sync::Arc;

use super::{Hash, Scram};
use crate::kafka::sasl::{Credentials, Mechanism};

/// The nonce of the example of RFC 7677, so that a fuzzer can go on from it.
const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

/// A broker's messages, one to a line; the first byte chooses the hash. The
/// claim: nobody is content before the second message, and nothing is said
/// after an end.
pub(crate) fn conversation(data: &[u8]) {
    let Some((choice, said)) = data.split_first() else {
        return;
    };
    let hash = if choice & 1 == 0 {
        Hash::Sha256
    } else {
        Hash::Sha512
    };
    let credentials = Arc::new(Credentials {
        mechanism: Mechanism::Scram(hash),
        username: "user".to_owned(),
        password: "pencil".to_owned(),
    });
    let (mut scram, _) = Scram::begin_with(hash, &credentials, NONCE.to_owned());
    let mut is_over = false;
    for (index, message) in said.split(|byte| *byte == b'\n').enumerate() {
        match scram.answer(message) {
            Ok(Some(_)) => assert!(index == 0, "something is said after the proof"),
            Ok(None) => {
                assert!(index == 1 && !is_over, "content without a proof");
                is_over = true;
            }
            Err(fault) => {
                assert!(!fault.to_string().contains("pencil"), "the password shows");
                is_over = true;
            }
        }
    }
}
