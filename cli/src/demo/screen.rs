//! The demo's live table: who reads which partition, how far it is, and how the
//! lag went.
//!
//! On a terminal the table is drawn over itself. Elsewhere (a file, a CI log)
//! it would be noise: there a line per second says the totals.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::Duration;

use keepup::PartitionView;
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

/// What the table takes without the course of the lag.
const OTHER_COLUMNS: usize = 58;

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

/// A partition now, and what led there.
#[derive(Clone, Debug, Default)]
struct Course {
    worker: Option<usize>,
    position: Option<i64>,
    end: Option<i64>,
    lag: Option<u64>,
    /// One per column, the newest last.
    lags: VecDeque<u64>,
    positions: VecDeque<i64>,
}

impl Course {
    fn see(&mut self, view: Option<&PartitionView>) {
        self.worker = view.and_then(|view| view.worker);
        self.position = view.and_then(|view| view.position);
        self.end = view.and_then(|view| view.end_offset);
        self.lag = view.and_then(PartitionView::records_lag);
    }

    fn add_column(&mut self) {
        self.lags.push_back(self.lag.unwrap_or(0));
        self.positions.push_back(self.position.unwrap_or(0));
        if self.lags.len() > MOST_COLUMNS {
            self.lags.pop_front();
            self.positions.pop_front();
        }
    }

    /// Records per second over the last columns.
    fn rate(&self) -> Option<u64> {
        let now = self.positions.back()?;
        let then = self
            .positions
            .get(self.positions.len().checked_sub(1 + RATE_COLUMNS)?)?;
        let records = u64::try_from(now - then).ok()?;
        let millis = u64::try_from(COLUMN.as_millis()).ok()? * RATE_COLUMNS as u64;
        (records * 1_000).checked_div(millis)
    }

    fn course(&self, columns: usize, highest: u64) -> String {
        let skipped = self.lags.len().saturating_sub(columns);
        self.lags
            .iter()
            .skip(skipped)
            .map(|lag| bar(*lag, highest))
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
            partitions: vec![Course::default(); partitions as usize],
            total: Course::default(),
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

    /// Takes a look at the partitions, `elapsed` into the demo, and shows them
    /// if it is time to.
    pub(super) fn see(&mut self, views: &[PartitionView], elapsed: Duration, status: &str) {
        self.look(views);
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

    fn look(&mut self, views: &[PartitionView]) {
        for (number, course) in (0..).zip(&mut self.partitions) {
            course.see(
                views
                    .iter()
                    .find(|view| view.partition.partition() == number),
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
                let mut text = String::new();
                if self.drawn_lines > 0 {
                    // Back to the table's first line; everything below goes.
                    let _ = write!(text, "\x1b[{}A\r\x1b[J", self.drawn_lines);
                }
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
        let columns = width.saturating_sub(OTHER_COLUMNS + 1).min(MOST_COLUMNS);
        let room = height.saturating_sub(OTHER_LINES).max(1);
        let hidden = match self.partitions.len().saturating_sub(room) {
            0 => 0,
            // The line that tells of them takes room too.
            more => more + 1,
        };
        let shown = &self.partitions[..self.partitions.len() - hidden];
        let mut lines = vec![format!(
            "{:>9}  {:>6}  {:>10}  {:>10}  {:>7}  {:>9}  {}",
            "partition",
            "worker",
            "position",
            "end",
            "lag",
            "records/s",
            cut("lag over time", columns)
        )];
        let highest = self.partitions.iter().flat_map(|course| &course.lags);
        let highest = highest.copied().max().unwrap_or(0);
        for (number, course) in shown.iter().enumerate() {
            lines.push(row(
                &number.to_string(),
                &course
                    .worker
                    .map_or("-".to_owned(), |worker| worker.to_string()),
                course,
                &course.course(columns, highest),
            ));
        }
        if hidden > 0 {
            lines.push(format!("{:>9}  and {hidden} more", "…"));
        }
        let highest = self.total.lags.iter().copied().max().unwrap_or(0);
        lines.push(row(
            "all",
            "",
            &self.total,
            &self.total.course(columns, highest),
        ));
        lines.push(cut(status, width.saturating_sub(1)));
        let mut text = String::new();
        for line in lines {
            text.push_str(cut(line.trim_end(), width.saturating_sub(1)).as_str());
            text.push('\n');
        }
        text
    }
}

fn row(partition: &str, worker: &str, course: &Course, lags: &str) -> String {
    format!(
        "{partition:>9}  {worker:>6}  {:>10}  {:>10}  {:>7}  {:>9}  {lags}",
        offset(course.position),
        offset(course.end),
        count(course.lag),
        count(course.rate()),
    )
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
            lags: lags.iter().copied().collect(),
            positions: (0..).map(|n| n * 1_000).take(lags.len()).collect(),
        }
    }

    fn screen() -> Screen {
        Screen {
            target: Target::Terminal,
            partitions: vec![
                course(0, 12_345, &[0, 10, 250, 900, 1_800, 700, 45]),
                course(1, 12_400, &[0, 0, 120, 500, 900, 300, 0]),
                Course::default(),
            ],
            total: course(0, 24_745, &[0, 10, 370, 1_400, 2_700, 1_000, 45]),
            column_at: None,
            shown_at: None,
            drawn_lines: 0,
        }
    }

    #[test]
    fn the_table_says_who_reads_what_and_how_far_behind_it_is() {
        let table = screen().table(80, 24, "3.5 s of 20 s");
        insta::assert_snapshot!("table", table);
        assert!(table.lines().all(|line| line.chars().count() < 80));
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
}
