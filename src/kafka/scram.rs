//! SCRAM: proving to know a password without saying it (RFC 5802 and 7677).
//!
//! The broker keeps a hash of the password and sends its salt and the number of
//! rounds; both sides sign what was said with keys made of it. The signature
//! that comes back proves that the broker knows them too: one that only says
//! yes is refused.
//!
//! Names and passwords are used as they are written, as Kafka's own clients do;
//! RFC 5802 would have them normalised.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest, hmac, pbkdf2};

use super::sasl::{Credentials, Mechanism, SaslFault};

/// Rounds of hashing that a broker may ask for. Kafka's lowest is RFC 5802's;
/// the highest is librdkafka's, and takes a good part of a second.
pub(crate) const ROUNDS: RangeInclusive<u32> = 4_096..=1_000_000;

/// The hash that a mechanism is named after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }
}

/// The client's side of one conversation.
#[derive(Debug)]
pub(super) struct Scram {
    hash: Hash,
    credentials: Arc<Credentials>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// The salt is awaited.
    First {
        nonce: String,
        bare: String,
    },
    /// The broker's signature is awaited.
    Last {
        key: Box<hmac::Key>,
        said: String,
    },
    Done,
}

/// What the header says of channel binding: none, and in the last message the
/// same again, encoded.
const HEADER: &str = "n,,";
const HEADER_ENCODED: &str = "biws";

impl Scram {
    /// Begins, with the first message.
    pub(super) fn begin(
        hash: Hash,
        credentials: &Arc<Credentials>,
    ) -> Result<(Self, Vec<u8>), SaslFault> {
        let mut random = [0; 24];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| SaslFault::NoRandom)?;
        Ok(Self::begin_with(
            hash,
            credentials,
            URL_SAFE_NO_PAD.encode(random),
        ))
    }

    fn begin_with(hash: Hash, credentials: &Arc<Credentials>, nonce: String) -> (Self, Vec<u8>) {
        let name = credentials.username.replace('=', "=3D").replace(',', "=2C");
        let bare = format!("n={name},r={nonce}");
        let message = format!("{HEADER}{bare}").into_bytes();
        let scram = Self {
            hash,
            credentials: Arc::clone(credentials),
            step: Step::First { nonce, bare },
        };
        (scram, message)
    }

    /// Takes the broker's message and gives the next one; `None` at the end.
    pub(super) fn answer(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, SaslFault> {
        let message = std::str::from_utf8(message).map_err(|_| self.odd("it is no text"))?;
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::First { nonce, bare } => self.prove(&nonce, &bare, message).map(Some),
            Step::Last { key, said } => self.check(&key, &said, message).map(|()| None),
            Step::Done => Err(self.odd("nothing was left to say")),
        }
    }

    /// Makes our proof of the broker's salt.
    fn prove(&mut self, nonce: &str, bare: &str, message: &str) -> Result<Vec<u8>, SaslFault> {
        let mut fields = message.split(',');
        let mut next = |name| {
            fields
                .next()
                .and_then(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let both = next("r").ok_or_else(|| self.odd("it begins without a nonce"))?;
        if both.len() <= nonce.len() || !both.starts_with(nonce) {
            return Err(self.odd("its nonce does not go on from ours"));
        }
        let salt = next("s")
            .and_then(|salt| STANDARD.decode(salt).ok())
            .filter(|salt| !salt.is_empty())
            .ok_or_else(|| self.odd("it has no salt"))?;
        let rounds: u32 = next("i")
            .and_then(|rounds| rounds.parse().ok())
            .ok_or_else(|| self.odd("it has no number of rounds"))?;
        let rounds = NonZeroU32::new(rounds)
            .filter(|rounds| ROUNDS.contains(&rounds.get()))
            .ok_or(SaslFault::Rounds(rounds))?;

        let password = self.credentials.password.as_bytes();
        let mut salted = vec![0; self.hash.digest().output_len()];
        pbkdf2::derive(self.hash.pbkdf2(), rounds, &salt, password, &mut salted);
        let salted = hmac::Key::new(self.hash.hmac(), &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let server_key = hmac::sign(&salted, b"Server Key");
        let stored = digest::digest(self.hash.digest(), client_key.as_ref());

        let without_proof = format!("c={HEADER_ENCODED},r={both}");
        let said = format!("{bare},{message},{without_proof}");
        let signature = hmac::sign(
            &hmac::Key::new(self.hash.hmac(), stored.as_ref()),
            said.as_bytes(),
        );
        let proof: Vec<u8> = client_key
            .as_ref()
            .iter()
            .zip(signature.as_ref())
            .map(|(key, signature)| key ^ signature)
            .collect();
        self.step = Step::Last {
            key: Box::new(hmac::Key::new(self.hash.hmac(), server_key.as_ref())),
            said,
        };
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)).into_bytes())
    }

    /// Checks the broker's proof.
    fn check(&self, key: &hmac::Key, said: &str, message: &str) -> Result<(), SaslFault> {
        let first = message.split(',').next().unwrap_or_default();
        if let Some(error) = first.strip_prefix("e=") {
            return Err(SaslFault::Refused {
                mechanism: self.name(),
                username: self.credentials.username.clone(),
                message: error.chars().take(200).collect(),
            });
        }
        let signature = first
            .strip_prefix("v=")
            .and_then(|signature| STANDARD.decode(signature).ok())
            .ok_or(SaslFault::Unproven)?;
        hmac::verify(key, said.as_bytes(), &signature).map_err(|_| SaslFault::Unproven)
    }

    fn name(&self) -> &'static str {
        Mechanism::Scram(self.hash).name()
    }

    fn odd(&self, what: &'static str) -> SaslFault {
        SaslFault::Message {
            mechanism: self.name(),
            what,
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn user(hash: Hash, username: &str, password: &str) -> Arc<Credentials> {
        Arc::new(Credentials {
            mechanism: Mechanism::Scram(hash),
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }

    /// The example of RFC 7677, section 3.
    pub(super) const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    pub(crate) const SALTED: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    pub(crate) const PROVEN: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn example() -> Scram {
        let credentials = user(Hash::Sha256, "user", "pencil");
        let (scram, first) = Scram::begin_with(Hash::Sha256, &credentials, NONCE.to_owned());
        assert_eq!(first, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        scram
    }

    #[test]
    fn the_conversation_of_rfc_7677_is_held_word_for_word() {
        let mut scram = example();
        let last = scram.answer(SALTED.as_bytes()).unwrap().unwrap();
        assert_eq!(
            String::from_utf8(last).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(scram.answer(PROVEN.as_bytes()), Ok(None));
        assert!(scram.answer(PROVEN.as_bytes()).is_err());
    }

    #[test]
    fn a_broker_that_only_says_yes_is_refused() {
        let none = format!("v={}", STANDARD.encode([0; 32]));
        for last in ["", "v=", "v=!", "x=1", &none, &PROVEN.to_lowercase()] {
            let mut scram = example();
            scram.answer(SALTED.as_bytes()).unwrap();
            let answer = scram.answer(last.as_bytes());
            assert_eq!(answer, Err(SaslFault::Unproven), "{last}");
        }
        let mut scram = example();
        scram.answer(SALTED.as_bytes()).unwrap();
        let fault = scram.answer(b"e=invalid-proof").unwrap_err().to_string();
        assert!(
            fault.contains("invalid-proof") && fault.contains("\"user\""),
            "{fault}"
        );
    }

    #[test]
    fn a_broker_that_asks_for_too_few_or_absurdly_many_rounds_is_refused() {
        for (rounds, refused) in [
            (0, true),
            (1, true),
            (4_095, true),
            (4_096, false),
            (1_000_001, true),
            (u32::MAX, true),
        ] {
            let message = SALTED.replace("i=4096", &format!("i={rounds}"));
            let answer = example().answer(message.as_bytes());
            assert_eq!(
                answer == Err(SaslFault::Rounds(rounds)),
                refused,
                "{rounds}"
            );
        }
    }

    #[test]
    fn what_is_no_first_message_of_a_broker_is_refused() {
        for wrong in [
            "",
            "r=",
            "e=other-error",
            // Our nonce alone, and somebody else's.
            "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=somebody-elses-nonce-of-some-length,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOmore,s=,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOmore,s=?,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOmore,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=many",
            "r=rOprNGfwEbeRWgbNEkqOmore,i=4096,s=W22ZaJ0SNY7soEsUEjb6gQ==",
            "m=ext,r=rOprNGfwEbeRWgbNEkqOmore,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        ] {
            let answer = example().answer(wrong.as_bytes());
            assert!(
                matches!(answer, Err(SaslFault::Message { .. })),
                "{wrong}: {answer:?}"
            );
        }
        assert!(example().answer(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn a_name_with_a_comma_cannot_change_the_message() {
        let credentials = user(Hash::Sha512, "a,r=b=c", "p");
        let (_, first) = Scram::begin_with(Hash::Sha512, &credentials, "nonce".to_owned());
        assert_eq!(first, b"n,,n=a=2Cr=3Db=3Dc,r=nonce");
    }

    #[test]
    fn no_two_conversations_have_the_same_nonce_and_none_shows_the_password() {
        let credentials = user(Hash::Sha512, "user", "hunter2");
        let (mut one, first) = Scram::begin(Hash::Sha512, &credentials).unwrap();
        let (_, second) = Scram::begin(Hash::Sha512, &credentials).unwrap();
        assert_ne!(first, second);
        let first = String::from_utf8(first).unwrap();
        let nonce = first.rsplit_once("r=").unwrap().1;
        let message = format!("r={nonce}more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        one.answer(message.as_bytes()).unwrap();
        let shown = format!("{one:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
