//! What workers that are processes tick off, where a kill leaves it.
//!
//! A handler in another process cannot tick its records off in the tally here. It
//! writes them down in a file of its own, one write per record, before it says
//! that the record is done: what a process has written is there also when it is
//! killed right after. The demo reads the files as they grow.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use super::tally::{Payload, Tally};
use crate::exit::Failure;
use crate::pages::{self, Pages};

/// A partition and a number.
const ENTRY: usize = 12;

/// The pages of all workers, read by the demo.
#[derive(Debug)]
pub(super) struct Ledger {
    pages: Pages,
    open: BTreeMap<PathBuf, Reading>,
}

#[derive(Debug)]
struct Reading {
    page: File,
    /// The beginning of an entry.
    rest: Vec<u8>,
}

impl Ledger {
    /// An empty one, for the workers of this process.
    pub(super) fn open() -> Result<Self, Failure> {
        Ok(Self {
            pages: Pages::open()?,
            open: BTreeMap::new(),
        })
    }

    /// Ticks off what was written since the last time; false where an entry is none
    /// of this demo's.
    pub(super) fn collect(&mut self, tally: &Tally) -> bool {
        for path in self.pages.all() {
            if !self.open.contains_key(&path)
                && let Ok(page) = File::open(&path)
            {
                let rest = Vec::new();
                self.open.insert(path, Reading { page, rest });
            }
        }
        self.open.values_mut().all(|reading| reading.collect(tally))
    }
}

impl Reading {
    fn collect(&mut self, tally: &Tally) -> bool {
        // What could not be read now is read the next time.
        let _ = self.page.read_to_end(&mut self.rest);
        let (entries, rest) = self.rest.as_chunks::<ENTRY>();
        let all = entries.iter().all(|entry| {
            let (partition, sequence) = entry.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
            let sequence = sequence.first_chunk::<8>().copied().unwrap_or_default();
            tally.tick(Payload {
                partition: u32::from_le_bytes(*partition),
                sequence: u64::from_le_bytes(sequence),
            })
        });
        self.rest = rest.to_vec();
        all
    }
}

/// The page of one worker process.
#[derive(Debug)]
pub(super) struct Page(Option<File>);

impl Page {
    /// That of this process, for the demo that it is a worker of.
    pub(super) fn open() -> Self {
        Self(pages::of_this_worker().ok())
    }

    /// Writes a record down; false where that cannot be done.
    pub(super) fn tick(&mut self, payload: Payload) -> bool {
        let mut entry = [0; ENTRY];
        entry[..4].copy_from_slice(&payload.partition.to_le_bytes());
        entry[4..].copy_from_slice(&payload.sequence.to_le_bytes());
        let written = self.0.as_mut().map(|page| page.write_all(&entry));
        written.is_some_and(|written| written.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_wrote_is_ticked_off_once_and_half_an_entry_waits_for_its_rest() {
        let mut ledger = Ledger::open().unwrap();
        let tally = Tally::new(2);
        let mut page = Page(Some(pages::of_this_process()));
        for sequence in [0, 1, 1] {
            let partition = 1;
            assert!(page.tick(Payload {
                partition,
                sequence
            }));
        }
        let mut torn = page.0.take().unwrap();
        torn.write_all(&[0; 5]).unwrap();
        assert!(ledger.collect(&tally) && ledger.collect(&tally));
        let sums = tally.sums();
        assert_eq!((sums.handled, sums.duplicates), (2, 1));
        torn.write_all(&[0; 7]).unwrap();
        assert!(ledger.collect(&tally));
        assert_eq!(tally.handled(0), 1);
        torn.write_all(&[9; ENTRY]).unwrap();
        assert!(!ledger.collect(&tally), "there is no such partition");
        let [path] = &ledger.pages.all()[..] else {
            panic!("one process has written");
        };
        let path = path.clone();
        drop(ledger);
        assert!(!path.exists());
    }
}
