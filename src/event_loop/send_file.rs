//! Files: written by sendfile(2), or read piece by piece where bytes must be seen or the system cannot.
//!
//! Read before: `event_loop/write.rs`.

use std::io;

use super::EventLoop;
use crate::base::id::ConnId;
use crate::base::part::FILES;
use crate::base::reason::{CloseReason, OsError};
use crate::parts::arena::SegmentList;
use crate::parts::outbox::{Outbox, Queue};
use crate::sys::{System, read_file};

impl<S: System> EventLoop<S> {
    /// Moves a list with a file in it to the outbox, where files are written from.
    pub(super) fn queue_files(&mut self, id: ConnId, segments: &mut SegmentList) {
        let (connection, cx) = self.table.at(id.slot);
        if !FILES.has_begun() || !cx.arena.has_file(segments) {
            return;
        }
        if connection.is_filtered() {
            connection.settle_clear_prefix(segments, cx);
            connection.spill_plain(std::mem::replace(segments, SegmentList::EMPTY), cx);
        } else {
            self.read_out(id);
            let (connection, cx) = self.table.at(id.slot);
            connection.spill_wire(std::mem::replace(segments, SegmentList::EMPTY), cx);
        }
    }

    /// One sendfile of at most `budget` bytes, if a file is at the front; returns how many bytes the kernel has
    /// accepted. `None` if there is none, or if it has to be read: then its next bytes are at the front.
    pub(super) fn write_file(&mut self, id: ConnId, budget: usize) -> Option<usize> {
        let (connection, cx) = self.table.at(id.slot);
        let wire = connection.outbox.as_ref().filter(|_| FILES.has_begun()).map(|outbox| &outbox.wire);
        let left = wire.and_then(Queue::front_file)?;
        let stream = connection.stream.as_ref()?;
        let result = self.system.send_file(&left.file, left.start, stream, left.length.min(budget));
        match result {
            Ok(0) => connection.close_now(CloseReason::File(OsError::of(0)), cx),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.load_file(id, budget, |outbox| &mut outbox.wire);
                return None;
            }
            Err(error) if !is_of_socket(&error) => {
                connection.close_now(CloseReason::File(OsError::from(error)), cx);
            }
            result => {
                let written = connection.on_write_result(result, &mut SegmentList::EMPTY.clone(), cx);
                cx.stats.spliced += written as u64;
                return Some(written);
            }
        }
        Some(0)
    }

    /// Reads the next bytes of the file at the front of a queue, if it is one, at most one write budget.
    pub(super) fn load_file(&mut self, id: ConnId, budget: usize, queue: fn(&mut Outbox) -> &mut Queue) {
        let (connection, cx) = self.table.at(id.slot);
        let Some(queue) = connection.outbox.as_mut().map(|outbox| queue(outbox)) else { return };
        let Some(left) = queue.front_file().filter(|_| FILES.has_begun()) else { return };
        let mut bytes = vec![0; left.length.min(budget)];
        match read_file(&left.file, left.start, &mut bytes) {
            Ok(n) if n == bytes.len() => cx.memory += queue.replace_front(bytes),
            Ok(_) => connection.close_now(CloseReason::File(OsError::of(0)), cx),
            Err(error) => connection.close_now(CloseReason::File(OsError::from(error)), cx),
        }
    }
}

/// Whether a failed sendfile says something of the socket; otherwise it is of the file.
fn is_of_socket(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::WouldBlock
            | Kind::Interrupted
            | Kind::BrokenPipe
            | Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::NotConnected
            | Kind::TimedOut
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
    )
}
