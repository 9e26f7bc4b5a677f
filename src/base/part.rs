//! Parts of the loop that a program may not use, and that are then not linked into it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a part of the loop is used. Each part has one beginning, the function that makes the first of its state,
/// which calls [`begin`](Part::begin). The functions by which the loop enters the part ask
/// [`has_begun`](Part::has_begun). If a program cannot reach the beginning, link-time optimisation makes the answer the
/// constant `false`, and removes the part.
///
/// One answer for the whole process, which stays `true`: a loop that does not use the part has none of its state, so
/// the answer of another loop changes nothing for it. It is asked where the loop enters the part, never on the path of
/// every message.
pub(crate) struct Part(AtomicBool);

/// Dials, with the resolver and its threads. Begins in [`Table::dial`](crate::connection::table::Table::dial).
pub(crate) static DIALS: Part = Part::new();
/// Files that are sent. Begins in [`Arena::push_file`](crate::parts::arena::Arena::push_file).
pub(crate) static FILES: Part = Part::new();
/// Filters, most often TLS. Begins in [`FilterConfig::new`](crate::FilterConfig::new).
pub(crate) static FILTERS: Part = Part::new();
/// Observers. Begins in [`Observers::add`](crate::base::observers::Observers::add).
pub(crate) static OBSERVERS: Part = Part::new();
/// Pipes between connections. Begins in [`Table::pipe`](crate::connection::table::Table::pipe).
pub(crate) static PIPES: Part = Part::new();

impl Part {
    const fn new() -> Part {
        Part(AtomicBool::new(false))
    }

    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
