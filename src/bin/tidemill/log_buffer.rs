//! The way of log lines to stderr: those of one turn of a loop are written with one call.
//!
//! A proxy logs a line for each connection. A write(2) for each of them would be one system call in twenty.

use std::cell::RefCell;
use std::io::{self, Write};

/// Lines that are collected before they are written, in bytes; they are written at the end of the turn in any case.
const MAX: usize = 64 * 1024;

thread_local! {
    /// The lines of this thread that are not written yet; None unless they are collected. Other threads than those of
    /// loops write at once.
    static LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

fn write_lines(bytes: &mut Vec<u8>) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let result = io::stderr().lock().write_all(bytes);
    bytes.clear();
    result
}

/// Where the logger writes to.
pub struct LogBuffer;

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A thread that ends has no buffer any more.
        let collected = LINES.try_with(|lines| match &mut *lines.borrow_mut() {
            Some(lines) => {
                lines.extend_from_slice(bytes);
                Some(if lines.len() < MAX { Ok(()) } else { write_lines(lines) })
            }
            None => None,
        });
        match collected.ok().flatten() {
            Some(result) => result?,
            None => io::stderr().lock().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    /// The logger flushes behind each line, which is what this buffer saves.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the lines of this thread that are collected. Called between turns, before the loop may sleep, and by the
/// panic hook, which must not panic where a line is just being added.
pub fn flush() {
    let _ = LINES.try_with(|lines| {
        if let Ok(mut lines) = lines.try_borrow_mut() {
            // stderr may be closed.
            let _ = lines.as_mut().map(write_lines);
        }
    });
}

/// While it lives, lines of this thread are collected until [`flush`] is called.
pub struct Collecting;

impl Collecting {
    pub fn start() -> Collecting {
        LINES.set(Some(Vec::new()));
        Collecting
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        flush();
        let _ = LINES.try_with(|lines| lines.take());
    }
}
