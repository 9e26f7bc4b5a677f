//! The way of log lines to stderr: those of one turn of the loop are written with one call.
//!
//! A proxy logs a line for each connection. A write(2) for each of them would be one system call in twenty.

use std::io::{self, Write};
use std::sync::{Mutex, TryLockError};
use std::thread::{self, ThreadId};

/// Lines that are collected before they are written, in bytes; they are written at the end of the turn in any case.
const MAX: usize = 64 * 1024;

static LINES: Mutex<Lines> = Mutex::new(Lines { bytes: Vec::new(), collects: None });

/// The lines that are not written yet.
struct Lines {
    bytes: Vec<u8>,
    /// The thread of the loop, while it runs: its lines are collected, since [`flush`] follows. Those of other threads
    /// are written at once, behind the collected ones.
    collects: Option<ThreadId>,
}

impl Lines {
    fn write_lines(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let result = io::stderr().lock().write_all(&self.bytes);
        self.bytes.clear();
        result
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        let keep = self.collects == Some(thread::current().id()) && self.bytes.len() < MAX;
        if keep { Ok(()) } else { self.write_lines() }
    }
}

/// Where the logger writes to.
pub struct LogBuffer;

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = LINES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        lines.add(bytes).map(|()| bytes.len())
    }

    /// The logger flushes behind each line, which is what this buffer saves.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the lines that are collected. Called between turns, before the loop may sleep, and by the panic hook, which
/// must not wait for a lock that its own thread may have.
pub fn flush() {
    let mut lines = match LINES.try_lock() {
        Ok(lines) => lines,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return,
    };
    // stderr may be closed.
    let _ = lines.write_lines();
}

/// While it lives, lines of this thread are collected until [`flush`] is called.
pub struct Collecting;

impl Collecting {
    pub fn start() -> Collecting {
        LINES.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).collects = Some(thread::current().id());
        Collecting
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        let mut lines = LINES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        lines.collects = None;
        let _ = lines.write_lines();
    }
}
