//! The last minutes, for the page: lag by tick, in memory that has a bound.
//!
//! A column is one tick of the reporter. Columns are numbered from the start
//! of the run, so that a page that already has some asks only for the rest.
//! With [`CURVES`] partitions over [`COLUMNS`] ticks it takes 600 KiB; of more
//! partitions those with the largest lags are kept, and the total is over all
//! of them in any case.

use std::collections::{BTreeMap, VecDeque};

use super::snapshot::LagSnapshot;
use crate::record::TopicPartition;

/// How many ticks are remembered: five minutes at one per second.
const COLUMNS: usize = 300;

/// Snapshots that follow each other faster (after changes of the assignment)
/// share a column, or some rebalances would push the last minutes out.
const LEAST_DISTANCE_MS: i64 = 500;

/// How many partitions have a curve of their own.
const CURVES: usize = 256;

/// How many partitions may get a curve in place of another's at one tick: it
/// takes a look at every cell each.
const TAKEN_UP_PER_TICK: usize = 8;

/// A lag, or that it is not known, in eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell(u64);

impl Cell {
    /// No log is that long, so nothing is lost.
    const GAP: Self = Self(u64::MAX);

    fn known(self) -> Option<u64> {
        (self != Self::GAP).then_some(self.0)
    }
}

impl From<Option<u64>> for Cell {
    fn from(lag: Option<u64>) -> Self {
        lag.map_or(Self::GAP, Self)
    }
}

/// One tick, apart from the partitions' lags.
#[derive(Clone, Copy, Debug)]
struct Column {
    taken_at_ms: i64,
    total: Cell,
    /// True where the group gave an assignment since the tick before.
    rebalanced: bool,
}

/// What one partition's lag was, as far back as the columns go; empty cells in
/// front where it was not ours yet.
#[derive(Debug)]
struct Curve {
    cells: VecDeque<Cell>,
    /// True where it was in the latest snapshot.
    current: bool,
}

impl Curve {
    /// The largest lag that it shows; `None` where it shows nothing.
    fn peak(&self) -> Option<u64> {
        self.cells.iter().filter_map(|cell| cell.known()).max()
    }
}

/// Lag over the last [`COLUMNS`] ticks.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The number of the first column that is still there.
    first: u64,
    /// When the first column of all was taken: tells one run from another.
    began_at_ms: i64,
    columns: VecDeque<Column>,
    curves: BTreeMap<TopicPartition, Curve>,
    rebalances: u64,
}

/// What a page does not have yet: columns, and the curves that show something
/// in them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Since {
    /// The number of the first column below.
    pub(crate) first: u64,
    /// When the run's first column was taken, in milliseconds since 1970.
    pub(crate) began_at_ms: i64,
    pub(crate) taken_at_ms: Vec<i64>,
    pub(crate) total: Vec<Option<u64>>,
    /// The numbers of the columns before which there was a rebalance.
    pub(crate) rebalanced: Vec<u64>,
    pub(crate) curves: Vec<(TopicPartition, Vec<Option<u64>>)>,
}

impl History {
    /// Adds a column, where it is time for one.
    pub(crate) fn push(&mut self, snapshot: &LagSnapshot) {
        if self.columns.back().is_some_and(|last| {
            let since = snapshot.taken_at_ms - last.taken_at_ms;
            (0..LEAST_DISTANCE_MS).contains(&since)
        }) {
            return;
        }
        if self.columns.is_empty() {
            self.columns.reserve_exact(COLUMNS);
            self.began_at_ms = snapshot.taken_at_ms;
        }
        if self.columns.len() == COLUMNS {
            self.forget_the_oldest();
        }
        let before = self.columns.len();
        self.columns.push_back(Column {
            taken_at_ms: snapshot.taken_at_ms,
            total: snapshot.total_lag().into(),
            rebalanced: snapshot.rebalances > self.rebalances,
        });
        self.rebalances = snapshot.rebalances;
        for curve in self.curves.values_mut() {
            curve.cells.push_back(Cell::GAP);
            curve.current = false;
        }
        for lag in &snapshot.partitions {
            self.set(&lag.partition, lag.records_lag.into(), before);
        }
        self.curves
            .retain(|_, curve| curve.current || curve.peak().is_some());
        self.take_up_the_largest(snapshot, before);
    }

    fn forget_the_oldest(&mut self) {
        self.columns.pop_front();
        self.first += 1;
        for curve in self.curves.values_mut() {
            curve.cells.pop_front();
        }
    }

    /// Sets the last cell of a curve, with gaps in front where it is new. A
    /// partition that is one too many has none.
    fn set(&mut self, partition: &TopicPartition, cell: Cell, before: usize) {
        // Not the entry API: that would clone the partition at every tick.
        if let Some(curve) = self.curves.get_mut(partition) {
            if let Some(last) = curve.cells.back_mut() {
                *last = cell;
            }
            curve.current = true;
        } else if self.curves.len() < CURVES {
            let cells = VecDeque::with_capacity(COLUMNS);
            self.begin_curve(partition.clone(), cells, cell, before);
        }
    }

    fn begin_curve(
        &mut self,
        partition: TopicPartition,
        mut cells: VecDeque<Cell>,
        cell: Cell,
        before: usize,
    ) {
        cells.clear();
        cells.resize(before, Cell::GAP);
        cells.push_back(cell);
        let curve = Curve {
            cells,
            current: true,
        };
        self.curves.insert(partition, curve);
    }

    /// Gives the flattest curves away to partitions that have more lag than
    /// those ever showed. Of equal ones the older stays: or all would come and
    /// go where nothing has any lag.
    fn take_up_the_largest(&mut self, snapshot: &LagSnapshot, before: usize) {
        if self.curves.len() < CURVES {
            return;
        }
        let mut flattest = self.flattest();
        let mut left = TAKEN_UP_PER_TICK;
        for lag in &snapshot.partitions {
            let Some((peak, partition)) = &flattest else {
                return;
            };
            if lag.records_lag <= *peak || self.curves.contains_key(&lag.partition) {
                continue;
            }
            if left == 0 {
                return;
            }
            left -= 1;
            let cells = self
                .curves
                .remove(partition)
                .map_or_else(VecDeque::new, |curve| curve.cells);
            self.begin_curve(lag.partition.clone(), cells, lag.records_lag.into(), before);
            flattest = self.flattest();
        }
    }

    /// The curve that would be missed least: with the lowest peak, and of those
    /// the youngest.
    fn flattest(&self) -> Option<(Option<u64>, TopicPartition)> {
        self.curves
            .iter()
            .min_by_key(|(_, curve)| {
                let back = curve.cells.iter().rev();
                let known = back.take_while(|cell| cell.known().is_some()).count();
                (curve.peak(), known)
            })
            .map(|(partition, curve)| (curve.peak(), partition.clone()))
    }

    /// The columns after number `after`; all of them where that is `None` or
    /// not a column of this run.
    pub(crate) fn since(&self, after: Option<u64>) -> Since {
        let next = self.first + self.columns.len() as u64;
        let from = match after {
            Some(after) if (self.first..next).contains(&after) => after + 1,
            _ => self.first,
        };
        let skip = usize::try_from(from - self.first).unwrap_or(COLUMNS);
        let columns = self.columns.range(skip..);
        Since {
            first: from,
            began_at_ms: self.began_at_ms,
            taken_at_ms: columns.clone().map(|column| column.taken_at_ms).collect(),
            total: columns.clone().map(|column| column.total.known()).collect(),
            rebalanced: (from..)
                .zip(columns)
                .filter_map(|(number, column)| column.rebalanced.then_some(number))
                .collect(),
            curves: self
                .curves
                .iter()
                .map(|(partition, curve)| {
                    let cells = curve.cells.range(skip..);
                    (partition.clone(), cells.map(|cell| cell.known()).collect())
                })
                .filter(|(_, lags): &(_, Vec<Option<u64>>)| lags.iter().any(Option::is_some))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lag::PartitionLag;

    /// As of `at` seconds.
    fn snapshot(at: i64, rebalances: u64, lags: &[(i32, Option<u64>)]) -> LagSnapshot {
        LagSnapshot {
            taken_at_ms: at * 1_000,
            rebalances,
            partitions: lags
                .iter()
                .map(|&(partition, lag)| PartitionLag {
                    records_lag: lag,
                    ..PartitionLag::unknown(orders(partition))
                })
                .collect(),
            ..LagSnapshot::default()
        }
    }

    fn orders(partition: i32) -> TopicPartition {
        TopicPartition::new("orders", partition)
    }

    #[test]
    fn an_unknown_lag_is_a_gap_and_so_is_the_total_without_it() {
        let mut history = History::default();
        history.push(&snapshot(1, 1, &[(0, Some(5)), (1, None)]));
        history.push(&snapshot(2, 1, &[(0, None), (1, None)]));
        history.push(&snapshot(3, 2, &[(0, Some(0)), (1, Some(7))]));
        assert_eq!(
            history.since(None),
            Since {
                first: 0,
                began_at_ms: 1_000,
                taken_at_ms: vec![1_000, 2_000, 3_000],
                total: vec![None, None, Some(7)],
                rebalanced: vec![0, 2],
                curves: vec![
                    (orders(0), vec![Some(5), None, Some(0)]),
                    (orders(1), vec![None, None, Some(7)]),
                ],
            }
        );
    }

    #[test]
    fn whoever_has_some_columns_gets_the_rest() {
        let mut history = History::default();
        for at in 0..3 {
            history.push(&snapshot(at, 0, &[(0, Some(1)), (1, None)]));
        }
        let rest = history.since(Some(1));
        assert_eq!((rest.first, rest.taken_at_ms), (2, vec![2_000]));
        assert_eq!(rest.curves, [(orders(0), vec![Some(1)])]);
        let nothing = history.since(Some(2));
        assert_eq!((nothing.first, nothing.taken_at_ms), (3, vec![]));
        assert_eq!(nothing.curves, []);
        // A number of another run, or one that is gone.
        assert_eq!(history.since(Some(3)).first, 0);
        assert_eq!(history.since(Some(u64::MAX)), history.since(None));
    }

    #[test]
    fn a_revoked_partition_is_forgotten_with_its_last_column() {
        let mut history = History::default();
        history.push(&snapshot(0, 0, &[(0, Some(9)), (1, Some(1))]));
        for at in 1..300 {
            history.push(&snapshot(at, 0, &[(1, Some(1))]));
        }
        let all = history.since(None);
        assert_eq!(all.taken_at_ms.len(), COLUMNS);
        assert_eq!(all.curves[0].0, orders(0));
        assert_eq!(all.curves[0].1[..2], [Some(9), None]);

        history.push(&snapshot(300, 0, &[(1, Some(1))]));
        let all = history.since(None);
        assert_eq!((all.first, all.taken_at_ms.len()), (1, COLUMNS));
        assert_eq!(all.began_at_ms, 0);
        assert_eq!(all.curves.len(), 1);
        assert_eq!(all.curves[0].0, orders(1));
    }

    #[test]
    fn of_too_many_partitions_the_largest_lags_get_the_curves_and_the_total_is_whole() {
        let mut history = History::default();
        let lags: Vec<_> = (0..1_000i32)
            .map(|partition| (partition, Some(u64::from(partition.unsigned_abs()))))
            .collect();
        // A few at each tick.
        for at in 0..100 {
            history.push(&snapshot(at, 0, &lags));
        }
        let all = history.since(None);
        assert_eq!(all.total, [Some(499_500); 100]);
        let kept: Vec<_> = all
            .curves
            .iter()
            .map(|(curve, _)| curve.partition())
            .collect();
        assert_eq!(kept, (744..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn curves_do_not_come_and_go_where_all_are_flat() {
        let mut history = History::default();
        let flat: Vec<_> = (0..300).map(|partition| (partition, Some(0))).collect();
        history.push(&snapshot(0, 0, &flat));
        let kept = |history: &History| history.curves.keys().cloned().collect::<Vec<_>>();
        let before = kept(&history);
        for at in 1..4 {
            history.push(&snapshot(at, 0, &flat));
        }
        assert_eq!(kept(&history), before);
    }

    #[test]
    fn snapshots_in_quick_succession_share_a_column_and_lose_no_rebalance() {
        let mut history = History::default();
        history.push(&snapshot(0, 0, &[(0, Some(1))]));
        let mut soon = snapshot(0, 1, &[(0, Some(2))]);
        soon.taken_at_ms = 200;
        history.push(&soon);
        assert!(history.since(None).rebalanced.is_empty());
        history.push(&snapshot(1, 1, &[(0, Some(3))]));
        let all = history.since(None);
        assert_eq!(all.taken_at_ms, [0, 1_000]);
        assert_eq!(all.rebalanced, [1]);
        assert_eq!(all.curves, [(orders(0), vec![Some(1), Some(3)])]);
    }

    #[test]
    fn memory_has_a_bound() {
        let mut history = History::default();
        for at in 0..700i64 {
            // Every partition is revoked after one tick.
            let number = i32::try_from(at).expect("a small number") * 10;
            let lags: Vec<_> = (number..number + 10).map(|n| (n, Some(1))).collect();
            history.push(&snapshot(at, 0, &lags));
        }
        assert_eq!(history.columns.len(), COLUMNS);
        assert_eq!(history.curves.len(), CURVES);
        for curve in history.curves.values() {
            assert_eq!(curve.cells.len(), COLUMNS);
            assert!(curve.cells.capacity() <= 2 * COLUMNS);
        }
    }
}
