//! Model B: each worker is a process of its own, and this one is the member.
//!
//! A handler may leak, crash in foreign code, or keep a lock that a whole
//! interpreter shares. Processes keep such handlers apart, and on machines where
//! one consumer is one process it is what people have. What has to stay is all
//! else: one member in the group, one place to scrape, nothing lost, and no
//! rebalance when one of them dies. So the parent is the member, as in model A,
//! and to its loop a child is a worker like another:
//!
//! ```text
//!  parent                                             child N (this executable again)
//!  member ── mailbox ──► keepup-child-N ══ socket ══► main thread ── mailbox ──► keepup-worker-N
//!     ▲                       │   ▲                       ▲  ▲                        │
//!     └── reports, trackers ◄─┘   └── frames, stdout ─────┘  └── reports, trackers ◄──┘
//! ```
//!
//! A thread of the parent stands in for each child ([`parent`]): it takes the
//! worker's wishes out of its mailbox, and puts what the child tells into the
//! trackers that the member and the reporter read. In the child the same code
//! runs a worker as in model A ([`child`]); it fetches from the brokers itself,
//! so no record crosses the socket.
//!
//! | file | question |
//! |---|---|
//! | [`message`] | what do they say to each other? |
//! | [`line`] | how does that become bytes and back? pure |
//! | [`watch`] | when is a silent child asked, and when killed? pure |
//! | [`launch`] | what is started, and where is that refused? |
//! | [`parent`] | who stands in for a child? |
//! | [`child`] | what does a process do that was started as a worker? |
//!
//! # Who may touch what, and when
//!
//! A partition is given to somebody else only once its child has given it back
//! or is dead. A child that hangs in a handler is alive and says so: as in model
//! A it is left alone, since a long handler is no fault. A child that says
//! nothing (stopped, swapped out, its line broken) is killed before its
//! partitions go on. A child whose parent says nothing starts no record: the
//! parent's [`Gate`](crate::worker::gate::Gate) is beaten in the parent's time,
//! which is the machine's monotonic clock, so that a beat which lay in the
//! socket while both were stopped is as old as it is.

pub(crate) mod child;
pub(crate) mod launch;
pub(crate) mod line;
pub(crate) mod message;
pub(crate) mod parent;
pub(crate) mod watch;

/// True in a process that was started as a worker of
/// [`Model::Processes`](crate::Model::Processes), before and in its `run`.
///
/// What stands before `run()` in `main` happens in every process of the run. A
/// program that has something to do once (open a port, migrate a table, print a
/// banner) asks this first.
///
/// ```no_run
/// if !keepup::is_worker_process() {
///     println!("starting");
/// }
/// ```
pub fn is_worker_process() -> bool {
    launch::is_worker()
}
