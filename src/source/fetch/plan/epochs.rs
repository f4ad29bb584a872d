//! Which leader wrote what was read: how a log that was cut off is noticed.
//!
//! An unclean election makes a replica leader that lacks some of what was read
//! already. Its log grows again, past our position, and reading on would skip
//! whatever it has between the cut and there. So a request tells in which leader
//! epoch the record before its offset was written, and a broker whose log has
//! no such record at that place says up to where its log may agree
//! (`diverging_epoch`, KIP-595): the end of the largest epoch that it has and
//! that is not larger than ours.
//!
//! That is an upper bound. Where we never read anything of the epoch that the
//! broker names, what we read before may differ too, and the broker is asked
//! again about our next older epoch, as a follower does (KIP-279). The few
//! epochs that were read are therefore remembered, each with its first offset.

use std::collections::VecDeque;

use crate::kafka::messages::Diverging;

/// Epochs that are remembered: leaders change seldom, and beyond these the
/// broker's word is taken.
const MOST_EPOCHS: usize = 16;

/// What was read of one epoch, from the first record known to be of it to the
/// offset after the last. What compaction took between two of them is in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    epoch: i32,
    start: i64,
    next: i64,
}

/// The leader epochs of what was read last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Epochs {
    runs: VecDeque<Run>,
}

/// What a diverging epoch means for what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreement {
    /// The logs agree up to here and no further.
    UpTo(i64),
    /// They may agree up to here, which is less than was asked about before: to
    /// be asked about.
    AtMost(i64),
}

impl Epochs {
    /// A wire batch of `epoch` was read, from `start` up to `next`.
    pub(super) fn read(&mut self, epoch: i32, start: i64, next: i64) {
        match self.runs.back_mut() {
            Some(last) if last.epoch == epoch => {
                last.next = next;
                return;
            }
            // Epochs do not fall within a log: nothing is known any more.
            Some(last) if last.epoch > epoch => self.runs.clear(),
            _ => {}
        }
        if epoch >= 0 {
            if self.runs.len() == MOST_EPOCHS {
                self.runs.pop_front();
            }
            self.runs.push_back(Run { epoch, start, next });
        }
    }

    /// The epoch of the record before `offset`, -1 where it is not known.
    pub(super) fn before(&self, offset: i64) -> i32 {
        self.runs
            .iter()
            .rev()
            .find(|run| run.start < offset && offset <= run.next)
            .map_or(-1, |run| run.epoch)
    }

    /// Reading goes on at `offset`: forgets what is known from there on, and all
    /// where nothing is known of what comes before it.
    pub(super) fn go_to(&mut self, offset: i64) {
        if self.before(offset) < 0 {
            self.runs.clear();
        }
        self.runs.retain_mut(|run| {
            run.next = run.next.min(offset);
            run.start < offset
        });
    }

    /// Up to where the broker's log agrees with what was read, if it diverges
    /// below `asked`.
    pub(super) fn agreement(&self, asked: i64, diverging: Diverging) -> Agreement {
        let bound = diverging.end_offset.min(asked);
        let mut end = asked;
        for run in self.runs.iter().rev() {
            if run.start >= asked {
                continue;
            }
            if run.epoch <= diverging.epoch {
                let common = bound.min(end).min(run.next);
                return if run.epoch == diverging.epoch || common >= asked {
                    Agreement::UpTo(common)
                } else {
                    Agreement::AtMost(common)
                };
            }
            end = run.start;
        }
        // Nothing that is known is in the broker's log.
        Agreement::UpTo(bound.min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read so far: epoch 1 from 0, epoch 2 from 10, epoch 4 from 20 to 30.
    fn three() -> Epochs {
        let mut epochs = Epochs::default();
        for (epoch, start, next) in [(1, 0, 5), (1, 5, 10), (2, 10, 20), (4, 20, 30)] {
            epochs.read(epoch, start, next);
        }
        epochs
    }

    fn diverging(epoch: i32, end_offset: i64) -> Diverging {
        Diverging { epoch, end_offset }
    }

    #[test]
    fn the_epoch_before_an_offset_is_that_of_the_record_before_it() {
        let epochs = three();
        let known = [0, 1, 10, 11, 20, 21, 30, 31].map(|offset| epochs.before(offset));
        assert_eq!(known, [-1, 1, 1, 2, 2, 4, 4, -1]);
        assert_eq!(Epochs::default().before(0), -1);
    }

    #[test]
    fn logs_that_share_the_last_epoch_agree_up_to_where_it_ends_in_both() {
        assert_eq!(three().agreement(30, diverging(4, 25)), Agreement::UpTo(25));
        // The broker has epoch 2 longer than we do, and then another than 4.
        assert_eq!(three().agreement(30, diverging(2, 28)), Agreement::UpTo(20));
        assert_eq!(three().agreement(30, diverging(1, 7)), Agreement::UpTo(7));
    }

    #[test]
    fn an_epoch_that_was_never_read_leads_to_a_question_about_the_one_before() {
        assert_eq!(
            three().agreement(30, diverging(3, 25)),
            Agreement::AtMost(20)
        );
        // Asked about 20, with epoch 2: the broker has nothing of that either.
        assert_eq!(three().agreement(20, diverging(1, 10)), Agreement::UpTo(10));
    }

    #[test]
    fn where_all_that_is_known_is_gone_the_brokers_word_is_taken() {
        assert_eq!(three().agreement(30, diverging(0, 25)), Agreement::UpTo(0));
        assert_eq!(
            Epochs::default().agreement(30, diverging(3, 25)),
            Agreement::UpTo(25)
        );
    }

    #[test]
    fn what_was_cut_off_is_forgotten_and_reading_goes_on_from_there() {
        let mut epochs = three();
        epochs.go_to(15);
        assert_eq!(epochs.before(15), 2);
        assert_eq!(epochs.before(16), -1);
        epochs.read(5, 15, 40);
        assert_eq!([15, 16, 40].map(|offset| epochs.before(offset)), [2, 5, 5]);
        epochs.go_to(41);
        assert_eq!(epochs, Epochs::default(), "nothing is known of 40");
    }

    #[test]
    fn nothing_is_claimed_of_what_compaction_took() {
        let mut epochs = Epochs::default();
        epochs.read(4, 20, 30);
        // Epoch 5 may have been in between.
        epochs.read(6, 100, 110);
        let known = [30, 31, 100, 101].map(|offset| epochs.before(offset));
        assert_eq!(known, [4, -1, -1, 6]);
        assert_eq!(
            epochs.agreement(110, diverging(5, 60)),
            Agreement::AtMost(30)
        );
    }

    #[test]
    fn only_the_last_epochs_are_remembered_and_none_that_fall() {
        let mut epochs = Epochs::default();
        for epoch in 0..40 {
            let start = i64::from(epoch);
            epochs.read(epoch, start, start + 1);
        }
        assert_eq!(epochs.runs.len(), MOST_EPOCHS);
        assert_eq!(epochs.before(40), 39);
        assert_eq!(epochs.before(24), -1);
        epochs.read(3, 40, 50);
        assert_eq!([40, 50].map(|offset| epochs.before(offset)), [-1, 3]);
        epochs.read(-1, 50, 60);
        assert_eq!(epochs, Epochs::default());
        assert_eq!(epochs.before(60), -1);
    }
}
