//! The demo's live table: who reads which partition, how far it is, and how the
//! lag went.
//!
//! Position, end and lag are those of the moment, so that a wave is seen to come;
//! what needs a window (maximum, mean, the age of the oldest record) is from the
//! latest snapshot, which is up to a second old. A narrow terminal shows fewer
//! columns rather than cut ones.
//!
//! On a terminal the table is drawn over itself. Elsewhere (a file, a CI log)
//! it would be noise: there a line per second says the totals.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::Duration;

use keepup::{LagSnapshot, PartitionLag, PartitionView};
use terminal_size::{Height, Width};

use crate::output::say;
use crate::report::grouped;

/// How often a column is added to the course of the lag.
pub(super) const COLUMN: Duration = Duration::from_millis(500);

/// How often the table is drawn.
const DRAW: Duration = Duration::from_millis(200);

/// How often a line is printed where there is no terminal.
const LINE: Duration = Duration::from_secs(1);

/// The most columns that a course of the lag has.
const MOST_COLUMNS: usize = 60;

/// What stands above the course of the lag: the first that has room there.
/// Without room for either there is no course.
const COURSE: [&str; 2] = ["lag over time", "over time"];

/// What is between two columns.
const GAP: &str = "  ";

/// Over how many columns a rate is taken.
const RATE_COLUMNS: usize = 2;

/// Lines of the table beside those of the partitions.
const OTHER_LINES: usize = 5;

/// The table and what it remembers.
pub(super) struct Screen {
    target: Target,
    partitions: Vec<Course>,
    total: Course,
    /// The moment of the newest column.
    column_at: Option<Duration>,
    shown_at: Option<Duration>,
    drawn_lines: usize,
}

/// Where the table goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Nowhere,
    Lines,
    Terminal,
}

/// A partition or all of them: now, and what led there.
#[derive(Clone, Debug, Default)]
struct Course {
    name: String,
    is_total: bool,
    worker: Option<usize>,
    position: Option<i64>,
    end: Option<i64>,
    lag: Option<u64>,
    lag_max: Option<u64>,
    lag_avg: Option<f64>,
    /// The age of the oldest record that is not completed.
    oldest: Option<Duration>,
    /// One per column, the newest last.
    lags: VecDeque<Option<u64>>,
    positions: VecDeque<Option<i64>>,
}

/// A column of the table.
struct Column {
    name: &'static str,
    width: usize,
    /// The width of a terminal from which on it is shown.
    from: usize,
    /// False where a sum over the partitions would mean nothing.
    adds_up: bool,
    show: fn(&Course) -> String,
}

const COLUMNS: [Column; 9] = [
    Column {
        name: "partition",
        width: 9,
        from: 0,
        adds_up: true,
        show: |course| course.name.clone(),
    },
    Column {
        name: "worker",
        width: 6,
        from: 0,
        adds_up: false,
        show: |course| count(course.worker.map(|worker| worker as u64)),
    },
    Column {
        name: "position",
        width: 9,
        from: 80,
        adds_up: true,
        show: |course| offset(course.position),
    },
    Column {
        name: "end",
        width: 9,
        from: 80,
        adds_up: true,
        show: |course| offset(course.end),
    },
    Column {
        name: "lag",
        width: 7,
        from: 0,
        adds_up: true,
        show: |course| count(course.lag),
    },
    Column {
        name: "max",
        width: 7,
        from: 0,
        adds_up: false,
        // A second of rising lag must not stand above its own maximum.
        show: |course| count(course.lag_max.max(course.lag)),
    },
    Column {
        name: "avg",
        width: 7,
        from: 48,
        adds_up: false,
        show: |course| count(course.lag_avg.map(rounded)),
    },
    Column {
        name: "oldest",
        width: 7,
        from: 90,
        adds_up: false,
        show: |course| {
            course
                .oldest
                .map_or("-".to_owned(), |age| format!("{:.1} s", age.as_secs_f64()))
        },
    },
    Column {
        name: "records/s",
        width: 9,
        from: 104,
        adds_up: true,
        show: |course| count(course.rate()),
    },
];

impl Course {
    fn of_partition(number: u32) -> Self {
        Self {
            name: number.to_string(),
            ..Self::default()
        }
    }

    fn of_all() -> Self {
        Self {
            name: "all".to_owned(),
            is_total: true,
            ..Self::default()
        }
    }

    fn see(&mut self, view: Option<&PartitionView>, lag: Option<&PartitionLag>) {
        self.worker = view.and_then(|view| view.worker);
        self.position = view.and_then(|view| view.position);
        self.end = view.and_then(|view| view.end_offset);
        self.lag = view.and_then(PartitionView::records_lag);
        self.lag_max = lag.and_then(|lag| lag.records_lag_max);
        self.lag_avg = lag.and_then(|lag| lag.records_lag_avg);
        self.oldest = lag.and_then(|lag| lag.time_lag);
    }

    fn add_column(&mut self) {
        self.lags.push_back(self.lag);
        self.positions.push_back(self.position);
        if self.lags.len() > MOST_COLUMNS {
            self.lags.pop_front();
            self.positions.pop_front();
        }
    }

    /// Records per second over the last columns, where both ends are known.
    fn rate(&self) -> Option<u64> {
        let now = (*self.positions.back()?)?;
        let before = self.positions.len().checked_sub(1 + RATE_COLUMNS)?;
        let then = (*self.positions.get(before)?)?;
        let records = u64::try_from(now - then).ok()?;
        let millis = u64::try_from(COLUMN.as_millis()).ok()? * RATE_COLUMNS as u64;
        (records * 1_000).checked_div(millis)
    }

    fn course(&self, columns: usize, highest: u64) -> String {
        let skipped = self.lags.len().saturating_sub(columns);
        self.lags
            .iter()
            .skip(skipped)
            .map(|lag| lag.map_or(' ', |lag| bar(lag, highest)))
            .collect()
    }
}

/// A bar of one character; the empty one for nothing.
fn bar(lag: u64, highest: u64) -> char {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let eighth = (lag * 7).div_ceil(highest.max(1));
    let index = usize::try_from(eighth).unwrap_or(7).min(7);
    BARS[index]
}

impl Screen {
    /// A table of that many partitions on stderr, or none.
    pub(super) fn new(partitions: u32, silent: bool) -> Self {
        let target = if silent {
            Target::Nowhere
        } else if io::stderr().is_terminal() {
            Target::Terminal
        } else {
            Target::Lines
        };
        Self {
            target,
            partitions: (0..partitions).map(Course::of_partition).collect(),
            total: Course::of_all(),
            column_at: None,
            shown_at: None,
            drawn_lines: 0,
        }
    }

    /// Says something above the table.
    pub(super) fn say(&mut self, text: &str) {
        if self.target != Target::Nowhere {
            say(&format!("{text}\n"));
            self.drawn_lines = 0;
        }
    }

    /// Says what happened, in a line above the table.
    pub(super) fn note(&mut self, elapsed: Duration, what: &str) {
        let line = format!("{:>5.1} s  {what}\n", elapsed.as_secs_f64());
        match self.target {
            Target::Nowhere => {}
            Target::Lines => say(&line),
            Target::Terminal => {
                let erase = self.erase();
                say(&format!("{erase}{line}"));
                // The table is drawn below with the next look.
                (self.drawn_lines, self.shown_at) = (0, None);
            }
        }
    }

    /// Back to the table's first line; everything below goes.
    fn erase(&self) -> String {
        if self.drawn_lines > 0 {
            format!("\x1b[{}A\r\x1b[J", self.drawn_lines)
        } else {
            String::new()
        }
    }

    /// Takes a look at the partitions, `elapsed` into the demo, and shows them
    /// if it is time to.
    pub(super) fn see(
        &mut self,
        views: &[PartitionView],
        lag: &LagSnapshot,
        elapsed: Duration,
        status: &str,
    ) {
        self.look(views, lag);
        if is_due(self.column_at, elapsed, COLUMN) {
            self.column_at = Some(elapsed);
            for course in self.partitions.iter_mut().chain([&mut self.total]) {
                course.add_column();
            }
        }
        let every = match self.target {
            Target::Nowhere => return,
            Target::Lines => LINE,
            Target::Terminal => DRAW,
        };
        if is_due(self.shown_at, elapsed, every) {
            self.shown_at = Some(elapsed);
            self.show(elapsed, status);
        }
    }

    /// Shows the last look, due or not.
    pub(super) fn finish(&mut self, elapsed: Duration, status: &str) {
        self.show(elapsed, status);
        if self.target == Target::Terminal {
            say("\n");
        }
    }

    fn look(&mut self, views: &[PartitionView], lag: &LagSnapshot) {
        for (number, course) in (0..).zip(&mut self.partitions) {
            course.see(
                views
                    .iter()
                    .find(|view| view.partition.partition() == number),
                lag.partitions
                    .iter()
                    .find(|lag| lag.partition.partition() == number),
            );
        }
        let all = |part: fn(&Course) -> Option<i64>| -> Option<i64> {
            self.partitions.iter().map(part).sum()
        };
        self.total.position = all(|course| course.position);
        self.total.end = all(|course| course.end);
        self.total.lag = self.partitions.iter().map(|course| course.lag).sum();
    }

    fn show(&mut self, elapsed: Duration, status: &str) {
        match self.target {
            Target::Nowhere => {}
            Target::Lines => say(&self.line(elapsed, status)),
            Target::Terminal => {
                let (width, height) = terminal_size::terminal_size()
                    .map_or((80, 24), |(Width(width), Height(height))| {
                        (usize::from(width), usize::from(height))
                    });
                let table = self.table(width, height, status);
                let mut text = self.erase();
                text.push_str(&table);
                self.drawn_lines = table.lines().count();
                say(&text);
            }
        }
    }

    /// The totals in one line.
    fn line(&self, elapsed: Duration, status: &str) -> String {
        format!(
            "{:>5.1} s  handled {:>10}  lag {:>8}  {:>8} records/s  {status}\n",
            elapsed.as_secs_f64(),
            offset(self.total.position),
            count(self.total.lag),
            count(self.total.rate()),
        )
    }

    /// The table, not wider or higher than the terminal.
    fn table(&self, width: usize, height: usize, status: &str) -> String {
        let shown: Vec<&Column> = COLUMNS
            .iter()
            .filter(|column| column.from <= width)
            .collect();
        let taken: usize = shown.iter().map(|column| column.width + GAP.len()).sum();
        let left = width.saturating_sub(taken + 1);
        let title = COURSE.into_iter().find(|title| title.len() <= left);
        let columns = title.map_or(0, |_| left.min(MOST_COLUMNS));
        let room = height.saturating_sub(OTHER_LINES).max(1);
        let hidden = match self.partitions.len().saturating_sub(room) {
            0 => 0,
            // The line that tells of them takes room too.
            more => more + 1,
        };
        let mut lines = vec![line_of(
            &shown,
            |column| column.name.to_owned(),
            title.unwrap_or_default(),
        )];
        let highest = self
            .partitions
            .iter()
            .flat_map(|course| course.lags.iter().flatten());
        let highest = highest.copied().max().unwrap_or(0);
        for course in &self.partitions[..self.partitions.len() - hidden] {
            lines.push(row(&shown, course, &course.course(columns, highest)));
        }
        if hidden > 0 {
            lines.push(format!("{:>9}  and {hidden} more", "…"));
        }
        let highest = self.total.lags.iter().copied().flatten().max().unwrap_or(0);
        let total = self.total.course(columns, highest);
        lines.push(row(&shown, &self.total, &total));
        lines.push(status.to_owned());
        let mut text = String::new();
        for line in lines {
            text.push_str(cut(line.trim_end(), width.saturating_sub(1)).as_str());
            text.push('\n');
        }
        text
    }
}

fn row(columns: &[&Column], course: &Course, lags: &str) -> String {
    let cell = |column: &Column| {
        if course.is_total && !column.adds_up {
            String::new()
        } else {
            (column.show)(course)
        }
    };
    line_of(columns, cell, lags)
}

fn line_of(columns: &[&Column], cell: impl Fn(&Column) -> String, last: &str) -> String {
    let mut line = String::new();
    for column in columns {
        let _ = write!(line, "{:>width$}{GAP}", cell(column), width = column.width);
    }
    line + last
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a mean of lags: positive and far below 2^53"
)]
fn rounded(mean: f64) -> u64 {
    mean.round() as u64
}

fn is_due(last: Option<Duration>, now: Duration, every: Duration) -> bool {
    last.is_none_or(|last| now.saturating_sub(last) >= every)
}

fn offset(offset: Option<i64>) -> String {
    count(offset.and_then(|offset| u64::try_from(offset).ok()))
}

/// Unknown is not zero.
fn count(number: Option<u64>) -> String {
    number.map_or("-".to_owned(), grouped)
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(worker: usize, end: i64, lags: &[u64]) -> Course {
        let lag = *lags.last().unwrap();
        let position = end - i64::try_from(lag).unwrap();
        Course {
            worker: Some(worker),
            position: Some(position),
            end: Some(end),
            lag: Some(lag),
            lag_max: lags.iter().copied().max(),
            lag_avg: Some(512.4),
            oldest: Some(Duration::from_millis(1_250)),
            lags: lags.iter().copied().map(Some).collect(),
            positions: (0..).map(|n| Some(n * 1_000)).take(lags.len()).collect(),
            ..Course::default()
        }
    }

    fn screen() -> Screen {
        let mut partitions = vec![
            course(0, 12_345, &[0, 10, 250, 900, 1_800, 700, 45]),
            course(1, 12_400, &[0, 0, 120, 500, 900, 300, 0]),
            Course::default(),
        ];
        for (number, course) in partitions.iter_mut().enumerate() {
            course.name = number.to_string();
        }
        Screen {
            target: Target::Terminal,
            partitions,
            total: Course {
                name: "all".to_owned(),
                is_total: true,
                ..course(0, 24_745, &[0, 10, 370, 1_400, 2_700, 1_000, 45])
            },
            column_at: None,
            shown_at: None,
            drawn_lines: 0,
        }
    }

    #[test]
    fn the_table_says_who_reads_what_and_how_far_behind_it_is() {
        for width in [40, 80, 120] {
            let table = screen().table(width, 24, "3.5 s of 20 s");
            insta::assert_snapshot!(format!("table_{width}"), table);
            assert!(table.lines().all(|line| line.chars().count() < width));
        }
    }

    #[test]
    fn no_column_is_shown_that_would_be_cut() {
        for width in 40..130 {
            let taken: usize = COLUMNS
                .iter()
                .filter(|column| column.from <= width)
                .map(|column| column.width + GAP.len())
                .sum();
            assert!(taken <= width + 1, "{taken} of {width}");
        }
    }

    #[test]
    fn a_lag_never_stands_above_its_maximum() {
        let behind = Course {
            lag_max: Some(10),
            ..course(0, 500, &[300])
        };
        let max = COLUMNS.iter().find(|column| column.name == "max").unwrap();
        assert_eq!((max.show)(&behind), "300");
    }

    #[test]
    fn a_small_terminal_is_never_exceeded() {
        for (width, height) in [(40, 7), (20, 6), (1, 1), (0, 0)] {
            let table = screen().table(width, height, "3.5 s of 20 s");
            assert!(
                table.lines().all(|line| line.chars().count() <= width),
                "{width}: {table}"
            );
        }
        let table = screen().table(80, 7, "");
        assert!(table.contains("and 2 more"), "{table}");
        assert!(table.lines().count() < 7, "{table}");
    }

    #[test]
    fn bars_rise_with_the_lag_and_some_lag_is_never_shown_as_none() {
        assert_eq!(bar(0, 1_000), '▁');
        assert_eq!(bar(1, 1_000), '▂');
        assert_eq!(bar(1_000, 1_000), '█');
        assert_eq!(bar(0, 0), '▁');
        assert_eq!(bar(5, 0), '█');
    }

    #[test]
    fn what_is_not_known_is_not_shown_as_zero() {
        assert_eq!(count(None), "-");
        assert_eq!(offset(Some(-1)), "-");
        assert_eq!(Course::default().rate(), None);
    }

    #[test]
    fn a_rate_over_what_was_not_known_is_not_known_and_its_lag_is_a_gap() {
        let mut partition = course(0, 9_000, &[10; 8]);
        assert!(partition.rate().is_some());
        partition.position = None;
        partition.lag = None;
        partition.add_column();
        assert_eq!(partition.rate(), None);
        for _ in 0..RATE_COLUMNS {
            partition.position = Some(9_000);
            partition.lag = Some(10);
            partition.add_column();
        }
        assert_eq!(partition.rate(), None, "it is not as if it had begun at 0");
        assert!(partition.course(20, 10).contains(' '));
        partition.add_column();
        assert_eq!(partition.rate(), Some(0));
    }
}
