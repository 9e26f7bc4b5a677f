//! `--trace`: the file, its bound, and when it is written.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tidemill::observer::{Observer, Step};

use super::Names;
use super::chrome::Chrome;
use super::text::Text;

/// The size of a trace at most. A busy server fills it within seconds, and viewers become slow with more.
const SIZE_MAX: u64 = 64 * 1024 * 1024;
/// Bytes that are collected before they are written: one system call for some hundred turns.
const BUFFER: usize = 64 * 1024;
/// What was collected is written at the end of a turn if the last write was this long ago. So a trace can be followed
/// while the server runs, and a busy one writes a hundred times a second and not in each turn.
const INTERVAL: Duration = Duration::from_millis(10);

/// How steps are written.
pub enum Format {
    Chrome(Chrome),
    Text(Text),
}

/// The file of a trace.
///
/// ```text
///     file   │ header │ steps … │ ending │
///                               ▲ the next write begins here, and ends with the ending again
/// ```
///
/// So the file is whole after each write, whatever ends the process.
pub struct TraceFile {
    file: File,
    path: PathBuf,
    format: Format,
    buffer: Vec<u8>,
    written: u64,
    max: u64,
    last_write: Duration,
    is_full: bool,
}

impl TraceFile {
    pub fn create(path: &Path, names: &Names) -> io::Result<TraceFile> {
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let format = match is_json {
            true => Format::Chrome(Chrome::new(names.clone())),
            false => Format::Text(Text::default()),
        };
        let mut trace = TraceFile {
            file: File::create(path)?,
            path: path.to_path_buf(),
            format,
            buffer: Vec::with_capacity(2 * BUFFER),
            written: 0,
            max: SIZE_MAX,
            last_write: Duration::ZERO,
            is_full: false,
        };
        if let Format::Chrome(chrome) = &trace.format {
            chrome.write_header(&mut trace.buffer);
        }
        trace.write()?;
        Ok(trace)
    }

    fn ending(&self) -> &'static [u8] {
        match self.format {
            Format::Chrome(_) => Chrome::ENDING,
            Format::Text(_) => b"",
        }
    }

    /// Writes what was collected, with the ending behind it, in one call: a process that is killed leaves a whole file.
    fn write(&mut self) -> io::Result<()> {
        let ending = self.ending();
        let length = self.buffer.len();
        self.buffer.extend_from_slice(ending);
        let result = self.file.write_all(&self.buffer);
        self.buffer.clear();
        result?;
        self.written += length as u64;
        if !ending.is_empty() {
            self.file.seek(SeekFrom::Current(-(ending.len() as i64)))?;
        }
        Ok(())
    }

    /// The buffer is full, or a turn has ended. A trace that cannot be written, or has reached its maximum, stops; the
    /// server goes on.
    fn write_if_due(&mut self, now: Duration, turn_ended: bool) {
        let is_due = turn_ended && now - self.last_write >= INTERVAL;
        if self.buffer.len() < BUFFER && !is_due {
            return;
        }
        self.last_write = now;
        if let Err(error) = self.write() {
            log::error!("the trace stops: cannot write {}: {error}", self.path.display());
            self.is_full = true;
        }
    }
}

/// Writes each step of a loop to a file.
pub struct Trace {
    file: TraceFile,
    clock: Instant,
}

impl Trace {
    pub fn new(file: TraceFile) -> Trace {
        Trace { file, clock: Instant::now() }
    }
}

impl Observer for Trace {
    fn observe(&mut self, step: &Step<'_>) {
        let file = &mut self.file;
        if file.is_full {
            return;
        }
        let now = self.clock.elapsed();
        match &mut file.format {
            Format::Chrome(chrome) => chrome.add(step, now, &mut file.buffer),
            Format::Text(text) => text.add(step, now, &mut file.buffer),
        }
        let turn_ended = matches!(step, Step::TurnEnd { .. });
        file.write_if_due(now, turn_ended);
        // Only between turns, so that the last one is whole.
        if turn_ended && file.written + file.buffer.len() as u64 + 2 * BUFFER as u64 > file.max {
            log::warn!("the trace stops: {} has its maximum size", file.path.display());
            file.is_full = true;
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = self.file.write() {
            log::error!("cannot write the end of {}: {error}", self.file.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill::Stats;

    use super::*;

    /// Turns of a loop that has only events, until the trace stops; the size and the text of the file.
    fn filled(name: &str) -> (u64, String) {
        let path = std::env::temp_dir().join(format!("tidemill-full-{}-{name}", std::process::id()));
        let mut file = TraceFile::create(&path, &Names::new()).expect("a file");
        file.max = 512 * 1024;
        let mut trace = Trace::new(file);
        for turn in 1..100_000 {
            let source = tidemill::observer::Source::Waker;
            trace.observe(&Step::Woken { turn, now: Duration::ZERO, events: 1 });
            trace.observe(&Step::Event { source, readable: true, writable: false, end: false, error: false });
            trace.observe(&Step::TurnEnd { turn, carried_over: false, stats: &Stats::default() });
        }
        assert!(trace.file.is_full, "100,000 turns are more than the maximum");
        drop(trace);
        let text = std::fs::read_to_string(&path).expect("the file");
        std::fs::remove_file(&path).expect("a file of ours");
        (text.len() as u64, text)
    }

    #[test]
    fn a_trace_stops_before_its_maximum_and_is_whole() {
        let (size, text) = filled("a.json");
        assert!((256 * 1024..=512 * 1024).contains(&size), "{size}");
        let whole: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let events = whole["traceEvents"].as_array().expect("a list");
        assert_eq!(events.last().expect("many")["cat"], "turn", "the last turn is whole");
        let (size, text) = filled("b.log");
        assert!((256 * 1024..=512 * 1024).contains(&size), "{size}");
        assert!(text.ends_with("\n"));
    }
}
