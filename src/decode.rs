//! Handlers of typed values: decoding before the handler, and what becomes of a
//! record that cannot be decoded.
//!
//! Such a record fails in the same way however often it is tried: attempts and
//! back-off would only hold up those behind it. So it is rejected
//! ([`Outcome::Reject`]): at once it becomes what the policy says of a record
//! that failed as often as allowed. Where decoding can fail for a reason that
//! passes (a registry of schemas that does not answer), the decoder says so
//! itself, by another outcome.

use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::handler::{Handler, IntoOutcome, Outcome};
use crate::record::Record;

impl<'a> Record<'a> {
    /// The value, decoded from JSON; a tombstone is decoded from `null`, so it is
    /// the `None` of an `Option`. Text may be borrowed from the record, as `Cow`:
    /// a `&str` cannot be where the JSON has an escape (`"\n"`), and the record
    /// would be rejected.
    ///
    /// # Errors
    ///
    /// [`Outcome::Reject`] where the value is not JSON, or not of that type; with
    /// `?` the handler's outcome:
    ///
    /// ```
    /// use std::borrow::Cow;
    ///
    /// use keepup::{Outcome, Record};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Order<'a> {
    ///     id: u64,
    ///     #[serde(borrow)]
    ///     customer: Cow<'a, str>,
    /// }
    ///
    /// fn handle(record: &Record<'_>) -> Result<(), Outcome> {
    ///     let order: Order<'_> = record.json()?;
    ///     println!("{} of {}", order.id, order.customer);
    ///     Ok(())
    /// }
    /// ```
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T, Outcome> {
        from_json(self).map_err(undecodable)
    }
}

fn from_json<'a, T: Deserialize<'a>>(record: &Record<'a>) -> Result<T, String> {
    let value = record.value().unwrap_or(b"null");
    serde_json::from_slice(value).map_err(|error| match record.value() {
        Some(_) => format!("the value cannot be decoded from JSON: {error}"),
        None => format!("the record has no value to decode (a tombstone): {error}"),
    })
}

fn undecodable(error: String) -> Outcome {
    Outcome::reject(error)
}

/// A handler of decoded values; made by [`json`] and [`decoding`].
#[must_use = "a handler does nothing until a run is given it"]
pub struct Decoding<D, H> {
    decode: D,
    handle: H,
    undecodable: fn(String) -> Outcome,
}

/// What decodes for the handlers that [`json`] makes.
pub type FromJson<T> = fn(&Record<'_>) -> Result<T, String>;

/// A handler of values that are decoded from JSON, as by [`Record::json`]. A
/// record that cannot be decoded is rejected ([`Outcome::Reject`]), unless
/// [`Decoding::undecodable`] says something else.
///
/// ```no_run
/// use keepup::Record;
///
/// #[derive(serde::Deserialize)]
/// struct Order { id: u64 }
///
/// # fn main() -> Result<(), keepup::Error> {
/// keepup::builder("localhost:9092", "billing")
///     .topic("orders")
///     .dead_letter("orders-dead")
///     .run(|_worker| {
///         keepup::json(|order: Order, record: &Record<'_>| {
///             println!("order {} at {}", order.id, record.offset());
///         })
///     })?;
/// # Ok(())
/// # }
/// ```
pub fn json<T, H, R>(handle: H) -> Decoding<FromJson<T>, H>
where
    T: DeserializeOwned,
    H: FnMut(T, &Record<'_>) -> R,
    R: IntoOutcome,
{
    Decoding {
        decode: |record| from_json(record),
        handle,
        undecodable,
    }
}

/// A handler of values that `decode` makes of records, in whatever format. A
/// record that it gives an error for is rejected ([`Outcome::Reject`]), unless
/// [`Decoding::undecodable`] says something else.
///
/// ```no_run
/// use keepup::Record;
///
/// # fn main() -> Result<(), keepup::Error> {
/// keepup::builder("localhost:9092", "billing")
///     .topic("readings")
///     .dead_letter("readings-dead")
///     .run(|_worker| {
///         keepup::decoding(
///             |record: &Record<'_>| {
///                 let bytes = record.value().unwrap_or_default().try_into();
///                 bytes.map(f64::from_be_bytes)
///             },
///             |reading: f64, _record: &Record<'_>| println!("{reading}"),
///         )
///     })?;
/// # Ok(())
/// # }
/// ```
pub fn decoding<T, E, D, H, R>(decode: D, handle: H) -> Decoding<D, H>
where
    D: FnMut(&Record<'_>) -> Result<T, E>,
    E: fmt::Display,
    H: FnMut(T, &Record<'_>) -> R,
    R: IntoOutcome,
{
    Decoding {
        decode,
        handle,
        undecodable,
    }
}

impl<D, H> Decoding<D, H> {
    /// What becomes of a record that cannot be decoded, given the decoder's error:
    /// for example [`Outcome::skip`], or [`Outcome::dead_letter`] where the
    /// policy says something else of records that fail. Default
    /// [`Outcome::reject`].
    pub fn undecodable(mut self, becomes: fn(String) -> Outcome) -> Self {
        self.undecodable = becomes;
        self
    }
}

impl<T, E, D, H, R> Handler for Decoding<D, H>
where
    D: FnMut(&Record<'_>) -> Result<T, E>,
    E: fmt::Display,
    H: FnMut(T, &Record<'_>) -> R,
    R: IntoOutcome,
{
    #[inline]
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        match (self.decode)(record) {
            Ok(value) => (self.handle)(value, record).into_outcome(),
            Err(error) => (self.undecodable)(error.to_string()),
        }
    }
}

impl<D, H> fmt::Debug for Decoding<D, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoding").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::batch_of_value;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Order<'a> {
        id: u64,
        customer: &'a str,
    }

    #[test]
    fn a_value_is_decoded_where_it_lies_and_what_is_not_of_the_type_is_rejected() {
        let batch = batch_of_value(Some(br#"{"id":7,"customer":"Ada"}"#));
        let record = batch.record(0, 1).expect("it is there");
        let expected = Order {
            id: 7,
            customer: "Ada",
        };
        assert_eq!(record.json(), Ok(expected));
        for (value, why) in [
            (Some(&b"{"[..]), "cannot be decoded from JSON: EOF"),
            (Some(b"[7]"), "cannot be decoded from JSON"),
            (Some(b"\xff"), "cannot be decoded from JSON"),
            (None, "no value to decode (a tombstone)"),
        ] {
            let batch = batch_of_value(value);
            let record = batch.record(0, 1).expect("it is there");
            let Err(Outcome::Reject { reason }) = record.json::<Order<'_>>() else {
                panic!("{value:?} is no order");
            };
            assert!(reason.contains(why), "{reason}");
            let is_known = record.json::<Option<u64>>();
            assert_eq!(is_known.is_ok(), value.is_none(), "a tombstone is nothing");
        }
    }

    #[test]
    fn a_decoder_stands_before_the_handler_and_its_error_becomes_what_is_asked_for() {
        let mut seen = Vec::new();
        let good = batch_of_value(Some(b"41"));
        let bad = batch_of_value(Some(b"forty-one"));
        let (good, bad) = (good.record(0, 1).unwrap(), bad.record(0, 1).unwrap());
        {
            let mut handler = json(|number: u64, record: &Record<'_>| {
                seen.push((number, record.attempt()));
                if number == 41 {
                    Err("not today")
                } else {
                    Ok(())
                }
            });
            assert_eq!(handler.handle(&good), Outcome::retry("not today"));
            assert!(matches!(handler.handle(&bad), Outcome::Reject { .. }));
            let mut handler = handler.undecodable(Outcome::skip);
            assert!(matches!(handler.handle(&bad), Outcome::Skip { .. }));
        }
        assert_eq!(seen, [(41, 1)]);
        let mut length = decoding(
            |record: &Record<'_>| record.value().map(<[u8]>::len).ok_or("nothing"),
            |length: usize, _: &Record<'_>| Outcome::skip(length.to_string()),
        );
        assert_eq!(length.handle(&bad), Outcome::skip("9"));
    }

    #[test]
    fn an_error_on_the_way_is_a_retry_and_an_outcome_is_what_it_says() {
        let handle = |text: &str, stop: bool| -> Result<(), Outcome> {
            let _number: u64 = text.parse()?;
            if stop {
                return Err(Outcome::stop("enough"));
            }
            Ok(())
        };
        assert_eq!(handle("1", false).into_outcome(), Outcome::Done);
        assert_eq!(handle("1", true).into_outcome(), Outcome::stop("enough"));
        let Outcome::Retry { reason, .. } = handle("x", false).into_outcome() else {
            panic!("it is no number");
        };
        assert!(reason.contains("invalid digit"), "{reason}");
    }
}
