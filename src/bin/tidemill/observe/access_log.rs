//! `--access-log`: a line for each connection that has ended.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde_json::json;
use tidemill::observer::{Observer, Step};
use tidemill::{ClosedInfo, ConnId};

use super::Names;
use crate::args::observe::LogFormat;

/// Lines that are collected before they are written, in bytes. They are written at the end of the turn in any case.
const BUFFER: usize = 64 * 1024;

/// Where the lines go.
enum Target {
    Stdout,
    File { path: PathBuf, file: File },
}

/// Writes the lines, on the loop's thread: those of a turn with one call.
pub struct AccessLog {
    target: Target,
    format: LogFormat,
    names: Names,
    /// Set by SIGHUP: the file is opened again before the next line, as logrotate(8) asks for.
    reopen: Arc<AtomicBool>,
    /// Connections that this side has dialed.
    dialed: HashSet<ConnId>,
    buffer: Vec<u8>,
    /// Whether the last write has failed; that is logged once.
    is_failing: bool,
}

impl AccessLog {
    pub fn open(
        path: &Path,
        format: LogFormat,
        names: Names,
        reopen: Arc<AtomicBool>,
    ) -> io::Result<AccessLog> {
        let target = match path.to_str() {
            Some("-") => Target::Stdout,
            _ => Target::File { path: path.to_path_buf(), file: append_to(path)? },
        };
        let (dialed, buffer) = (HashSet::new(), Vec::new());
        Ok(AccessLog { target, format, names, reopen, dialed, buffer, is_failing: false })
    }

    fn write(&mut self) {
        if self.reopen.swap(false, Ordering::Relaxed) {
            if let Target::File { path, file } = &mut self.target {
                match append_to(path) {
                    Ok(new) => *file = new,
                    Err(error) => {
                        log::error!("--access-log {}: {error}; keeping the previous file", path.display())
                    }
                }
            }
        }
        let result = match &mut self.target {
            Target::Stdout => io::stdout().lock().write_all(&self.buffer).and_then(|()| io::stdout().flush()),
            Target::File { file, .. } => file.write_all(&self.buffer),
        };
        self.buffer.clear();
        match result {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                log::error!("lines of the access log are lost: {error}");
                self.is_failing = true;
            }
            Err(_) => {}
        }
    }

    fn add(&mut self, service: &str, gone: &ClosedInfo) {
        let origin = if self.dialed.remove(&gone.id) { "dialed" } else { "accepted" };
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let local = gone.local.as_ref().map(ToString::to_string);
        let (reason, error) = (gone.reason.word(), gone.error_text());
        // Writing to memory does not fail.
        let _ = match self.format {
            LogFormat::Json => writeln!(
                self.buffer,
                "{}",
                json!({"time": time, "service": service, "connection": gone.id.to_string(), "origin": origin,
                       "peer": gone.peer.to_string(), "local": local, "seconds": gone.duration.as_secs_f64(),
                       "bytes_in": gone.bytes_in, "bytes_out": gone.bytes_out, "reason": reason, "error": error})
            ),
            LogFormat::Text => writeln!(
                self.buffer,
                "{time} service={service} connection={} origin={origin} peer={} local={} seconds={} bytes_in={} \
                 bytes_out={} reason={reason}{}",
                gone.id,
                gone.peer,
                local.as_deref().unwrap_or("-"),
                gone.duration.as_secs_f64(),
                gone.bytes_in,
                gone.bytes_out,
                error.map_or(String::new(), |error| format!(" error={error:?}")),
            ),
        };
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Observer for AccessLog {
    fn wants_messages(&self) -> bool {
        false
    }

    /// It gets the end of a turn in which a connection has ended, and needs no other.
    fn next_turn(&self, _: u64) -> u64 {
        u64::MAX
    }

    fn observe(&mut self, step: &Step<'_>) {
        match step {
            Step::Dial { connection, .. } => {
                self.dialed.insert(*connection);
            }
            Step::Close { service: Some(service), gone } => {
                let name = self.names.get(service).copied();
                if let Some(name) = name {
                    self.add(name, gone);
                }
            }
            Step::TurnEnd { .. } if !self.buffer.is_empty() => self.write(),
            _ => {}
        }
        if self.buffer.len() > BUFFER {
            self.write();
        }
    }
}
