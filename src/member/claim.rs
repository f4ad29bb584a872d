//! What becomes of a member whose `group.instance.id` another one still has.
//!
//! Under KIP-848 the group refuses a static member while the session of the one
//! before goes on: after a crash that is the rest of the session (45 s by the
//! broker's default), and librdkafka gives its client up at the first refusal.
//! A crash of the whole process for each of them would look like a process that
//! cannot start, so the refusals are waited out here: the client is made anew,
//! more and more rarely, until the group takes it or until the wait is longer
//! than any session. Whoever still has the id then is no leftover.

use std::time::{Duration, Instant};

/// The wait before the second attempt; doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What follows from a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is asked again, and this was the first refusal in a row.
    First,
    /// It is asked again.
    Again,
    /// It was refused for that long: somebody else has the id for good.
    Taken { waited: Duration },
}

/// The claim to an instance id: refused since when, asked again when.
#[derive(Debug)]
pub(crate) struct Claim {
    patience: Duration,
    refused_since: Option<Instant>,
    wait: Duration,
    ask_at: Option<Instant>,
}

impl Claim {
    /// Waits up to `patience` for the one who has the id.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            refused_since: None,
            wait: FIRST_WAIT,
            ask_at: None,
        }
    }

    /// The group refused the claim at `now`.
    pub(crate) fn refused(&mut self, now: Instant) -> Refusal {
        let is_first = self.refused_since.is_none();
        let since = *self.refused_since.get_or_insert(now);
        let waited = now.saturating_duration_since(since);
        if waited >= self.patience {
            self.ask_at = None;
            return Refusal::Taken { waited };
        }
        // The last attempt is made when the patience is over, not before.
        let at = (now + self.wait).min(since + self.patience);
        self.ask_at = Some(at);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        if is_first {
            Refusal::First
        } else {
            Refusal::Again
        }
    }

    /// True once when it is time to ask again.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.ask_at.is_some_and(|at| now >= at);
        if due {
            self.ask_at = None;
        }
        due
    }

    /// The group took this member in, be it with nothing: how long it had refused.
    pub(crate) fn granted(&mut self, now: Instant) -> Option<Duration> {
        let since = self.refused_since.take()?;
        self.wait = FIRST_WAIT;
        self.ask_at = None;
        Some(now.saturating_duration_since(since))
    }

    /// True from the first refusal until it is granted.
    pub(crate) fn is_made(&self) -> bool {
        self.refused_since.is_some()
    }

    /// Nobody asks again.
    pub(crate) fn give_up(&mut self) {
        self.ask_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const PATIENCE: Duration = Duration::from_mins(1);

    /// Refuses until it is over; the moments of the attempts, from the first refusal.
    fn refuse_all_the_time(claim: &mut Claim) -> (Vec<Duration>, Duration) {
        let began = Clock::manual().now();
        let step = Duration::from_millis(10);
        let (mut now, mut attempts) = (began, Vec::new());
        assert_eq!(claim.refused(now), Refusal::First);
        loop {
            now += step;
            if !claim.is_due(now) {
                continue;
            }
            assert!(!claim.is_due(now), "it is due once");
            attempts.push(now - began);
            match claim.refused(now) {
                Refusal::Again => {}
                Refusal::Taken { waited } => return (attempts, waited),
                Refusal::First => panic!("it was refused before"),
            }
        }
    }

    #[test]
    fn it_is_asked_more_and_more_rarely_and_given_up_when_the_patience_is_over() {
        let (attempts, waited) = refuse_all_the_time(&mut Claim::new(PATIENCE));
        let millis: Vec<u128> = attempts.iter().take(5).map(Duration::as_millis).collect();
        assert_eq!(millis, [250, 750, 1_750, 3_750, 5_750]);
        assert_eq!(waited, PATIENCE, "the last attempt is made at the very end");
        assert!(attempts.len() < 40, "{}", attempts.len());
    }

    #[test]
    fn who_was_let_in_begins_anew_when_it_is_refused_again() {
        let mut claim = Claim::new(PATIENCE);
        let now = Clock::manual().now();
        assert_eq!(claim.granted(now), None, "nobody had refused it");
        claim.refused(now);
        claim.refused(now + Duration::from_secs(50));
        let let_in = now + Duration::from_secs(59);
        assert_eq!(claim.granted(let_in), Some(Duration::from_secs(59)));
        assert!(
            !claim.is_due(let_in + PATIENCE),
            "nothing is asked any more"
        );
        let later = now + Duration::from_hours(1);
        assert_eq!(claim.refused(later), Refusal::First);
        assert!(claim.is_due(later + FIRST_WAIT));
    }

    #[test]
    fn without_patience_the_first_refusal_is_the_last() {
        let mut claim = Claim::new(Duration::ZERO);
        let now = Clock::manual().now();
        let waited = Duration::ZERO;
        assert_eq!(claim.refused(now), Refusal::Taken { waited });
        assert!(!claim.is_due(now + PATIENCE));
    }

    #[test]
    fn a_claim_that_is_given_up_is_not_made_again() {
        let mut claim = Claim::new(PATIENCE);
        let now = Clock::manual().now();
        claim.refused(now);
        claim.give_up();
        assert!(!claim.is_due(now + PATIENCE));
    }
}
