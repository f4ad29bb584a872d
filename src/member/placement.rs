//! Which worker gets which partition: sticky and even, as a pure function.
//!
//! A partition stays where it is while it can, because moving one waits for
//! the record in hand. No worker has more than one partition more than another.

use std::collections::BTreeMap;

/// Places `lanes` (each with the worker that has it now, if any) on `workers`.
///
/// Gives the worker of each lane, in the order of `lanes`; `None` for all where
/// there is no worker. Lanes of workers that are not in `workers` move.
pub(crate) fn place(lanes: &[Option<usize>], workers: &[usize]) -> Vec<Option<usize>> {
    if workers.is_empty() {
        return vec![None; lanes.len()];
    }
    let (least, mut extras) = (lanes.len() / workers.len(), lanes.len() % workers.len());
    let mut has: BTreeMap<usize, usize> = workers.iter().map(|&worker| (worker, 0)).collect();
    for worker in lanes.iter().flatten() {
        if let Some(count) = has.get_mut(worker) {
            *count += 1;
        }
    }
    // Who has more than the least keeps one extra, as long as there are extras:
    // every extra given to somebody else would be a move.
    let mut quota: BTreeMap<usize, usize> = BTreeMap::new();
    for (&worker, &count) in &has {
        let extra = usize::from(count > least && extras > 0);
        extras -= extra;
        quota.insert(worker, least + extra);
    }
    for (worker, quota) in &mut quota {
        if extras == 0 {
            break;
        }
        if has[worker] <= least {
            *quota += 1;
            extras -= 1;
        }
    }
    let mut placed: Vec<Option<usize>> = lanes
        .iter()
        .map(|lane| {
            let worker = (*lane)?;
            let left = quota.get_mut(&worker)?;
            *left = left.checked_sub(1)?;
            Some(worker)
        })
        .collect();
    // The rest goes to whoever has most room, so that they fill up evenly.
    for slot in placed.iter_mut().filter(|slot| slot.is_none()) {
        let roomiest = quota
            .iter_mut()
            .max_by_key(|(worker, left)| (**left, usize::MAX - **worker));
        if let Some((worker, left)) = roomiest {
            *slot = Some(*worker);
            *left = left.saturating_sub(1);
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(placed: &[Option<usize>], workers: &[usize]) -> Vec<usize> {
        workers
            .iter()
            .map(|w| placed.iter().filter(|p| **p == Some(*w)).count())
            .collect()
    }

    #[test]
    fn partitions_spread_evenly_over_new_workers() {
        assert_eq!(place(&[None; 5], &[0, 1]), [0, 0, 1, 0, 1].map(Some));
        assert_eq!(place(&[None; 2], &[0, 1, 2]), [0, 1].map(Some));
        assert_eq!(place(&[Some(3), None], &[]), [None, None]);
    }

    #[test]
    fn a_new_worker_takes_only_its_share() {
        let placed = place(
            &[Some(0), Some(1), Some(0), Some(1), Some(0), Some(1)],
            &[0, 1, 2],
        );
        assert_eq!(counts(&placed, &[0, 1, 2]), [2, 2, 2]);
        let moved = placed
            .iter()
            .zip([0, 1, 0, 1, 0, 1])
            .filter(|(p, was)| **p != Some(*was));
        assert_eq!(moved.count(), 2);
    }

    proptest! {
        #[test]
        fn placement_is_even_and_moves_no_more_than_needed(
            lanes in proptest::collection::vec(proptest::option::of(0_usize..8), 0..64),
            workers in proptest::collection::btree_set(0_usize..8, 1..8),
        ) {
            let workers: Vec<usize> = workers.into_iter().collect();
            let placed = place(&lanes, &workers);
            prop_assert!(placed.iter().all(|p| p.is_some_and(|w| workers.contains(&w))));
            let counts = counts(&placed, &workers);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{counts:?}");
            // The fewest moves: each worker keeps as much as its share allows.
            let (base, extras) = (lanes.len() / workers.len(), lanes.len() % workers.len());
            let has: Vec<usize> = workers.iter()
                .map(|w| lanes.iter().filter(|l| **l == Some(*w)).count()).collect();
            let above = has.iter().filter(|h| **h > base).count().min(extras);
            let kept_at_best: usize = has.iter().map(|h| (*h).min(base)).sum::<usize>() + above;
            let kept = lanes.iter().zip(&placed).filter(|(l, p)| l.is_some() && l == p).count();
            prop_assert_eq!(kept, kept_at_best);
            // Placed again, nothing moves.
            prop_assert_eq!(place(&placed, &workers), placed);
        }
    }
}
