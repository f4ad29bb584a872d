//! What worker processes leave for the process that started them: a page each, in
//! a directory that both know by that one's number.
//!
//! It stays when a worker is killed, which is why it is files and no pipe.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use crate::exit::Failure;

/// Where the workers of that process write.
fn place(parent: u32) -> PathBuf {
    std::env::temp_dir().join(format!("keepup-pages-{parent}"))
}

/// The directory, in the process that started the workers. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Pages(PathBuf);

impl Pages {
    /// An empty one.
    pub(crate) fn open() -> Result<Self, Failure> {
        let place = place(std::process::id());
        let refused = |source| Failure::System {
            what: "make a directory for what worker processes write down",
            source,
        };
        match fs::remove_dir_all(&place) {
            // Of a process of that number, which was killed.
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(refused(error)),
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&place)
            .map_err(refused)?;
        Ok(Self(place))
    }

    /// Those that there are by now.
    pub(crate) fn all(&self) -> Vec<PathBuf> {
        let pages = fs::read_dir(&self.0).into_iter().flatten().flatten();
        pages.map(|page| page.path()).collect()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // It is in the directory for such things: the system removes it some day.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The page of this process, in a worker.
pub(crate) fn of_this_worker() -> std::io::Result<File> {
    page(std::os::unix::process::parent_id())
}

fn page(parent: u32) -> std::io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(place(parent).join(std::process::id().to_string()))
}

/// As [`of_this_worker`], where this process is its own parent.
#[cfg(test)]
pub(crate) fn of_this_process() -> File {
    page(std::process::id()).unwrap()
}
