//! What is kept of a run, so that tables and pictures can be made again.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::rows::Peer;

/// Everything that was measured, by the names of the rows.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) rows: BTreeMap<String, Row>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// When it was complete, UTC.
    pub(crate) at: String,
    pub(crate) commit: String,
    /// The machine's load average right before.
    pub(crate) load: String,
    pub(crate) is_quick: bool,
    pub(crate) cells: Vec<Cell>,
}

/// What one client did in one row, round by round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) peer: String,
    /// A round that failed has no numbers, so that the rounds of two clients
    /// can be laid side by side.
    pub(crate) rounds: Vec<BTreeMap<String, f64>>,
    /// What went wrong last.
    failure: Option<String>,
}

impl Cell {
    pub(crate) fn new(peer: &str) -> Self {
        Self {
            peer: peer.to_owned(),
            rounds: Vec::new(),
            failure: None,
        }
    }

    pub(crate) fn add(&mut self, numbers: &[(&str, f64)]) {
        let named = |&(name, value): &(&str, f64)| (name.to_owned(), value);
        self.rounds.push(numbers.iter().map(named).collect());
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.rounds.push(BTreeMap::new());
        self.failure = Some(why);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure
            .as_ref()
            .map(|failure| format!("{}: {failure}", self.peer))
    }

    /// The median over the rounds; none where no round has the number.
    pub(crate) fn median(&self, metric: &str) -> Option<f64> {
        let mut values: Vec<f64> = self
            .rounds
            .iter()
            .filter_map(|round| round.get(metric).copied())
            .collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 {
            values.get(middle).copied()
        } else {
            Some(f64::midpoint(
                *values.get(middle.checked_sub(1)?)?,
                *values.get(middle)?,
            ))
        }
    }
}

impl Results {
    pub(crate) fn cell(&self, row: &str, peer: Peer) -> Option<&Cell> {
        self.cell_called(row, peer.name())
    }

    pub(crate) fn cell_called(&self, row: &str, name: &str) -> Option<&Cell> {
        let row = self.rows.get(row)?;
        row.cells.iter().find(|cell| cell.peer == name)
    }

    /// What was kept, or nothing.
    pub(crate) fn load() -> Self {
        match fs::read(file()) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                eprintln!(
                    "{} is not understood and begun anew: {error}",
                    file().display()
                );
                Self::default()
            }),
            Err(_) => Self::default(),
        }
    }

    pub(crate) fn save(&self) {
        let text = serde_json::to_vec_pretty(self).expect("numbers and words");
        // As a whole or not at all.
        let draft = file().with_extension("draft");
        fs::write(&draft, text).expect("the results can be written");
        fs::rename(&draft, file()).expect("the results can be written");
    }
}

/// Where it is kept.
pub(crate) fn file() -> PathBuf {
    crate::scratch().join("results.json")
}
