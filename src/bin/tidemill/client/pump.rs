//! The threads of stdin and stdout, which exchange bytes with the loop.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use rustyline::ExternalPrinter;
use tidemill::{ConnId, Handle, Socket, State};

use super::codec::Outgoing;
use super::stdio::{self, Output};
use super::terminal::{self, LineEditor, Typed};

/// How much of stdin is read at once.
const CHUNK: usize = 64 * 1024;

/// What went wrong with stdin, stdout or a frame, on any thread.
pub type Failed = Arc<OnceLock<Failure>>;

/// Why the client ends early.
#[derive(Clone)]
pub enum Failure {
    Text(String),
    Interrupt,
}

/// What the threads of stdin and stdout share with the service.
#[derive(Clone)]
pub struct Streams {
    pub output: Output,
    /// All of stdin was sent, or it is a terminal: then the peer's FIN is answered with ours. Set by the loop's thread.
    pub input_over: Arc<AtomicBool>,
    /// Do not end the sending side with stdin, but with the peer.
    pub no_shutdown: bool,
}

/// The connection as the other threads see it.
#[derive(Clone)]
pub struct Peer {
    pub handle: Handle,
    pub id: ConnId,
    pub failed: Failed,
}

impl Peer {
    /// Does something with the socket, if it is still there.
    fn post(&self, work: impl FnOnce(Socket<'_>) + Send + 'static) -> io::Result<()> {
        let id = self.id;
        let posted = self.handle.post(move |sockets| {
            if let Some(socket) = sockets.get(id) {
                work(socket);
            }
        });
        posted.map_err(io::Error::from)
    }

    /// Ends the connection for a reason that is not its own.
    fn fail(&self, why: Failure) {
        let _ = self.failed.set(why);
        // The loop may have ended already.
        let _ = self.post(|mut socket| socket.abort());
    }
}

/// Starts the threads of stdin and stdout; gives the one of stdout.
pub fn start_threads(
    peer: Peer,
    mut outgoing: Outgoing,
    until_drained: Receiver<()>,
    streams: &Streams,
    edits: bool,
) -> Result<JoinHandle<()>, String> {
    let (editor, printer) = match edits {
        true => LineEditor::new().map(|(editor, printer)| (Some(editor), Some(printer)))?,
        false => (None, None),
    };
    let (writes, output) = (peer.clone(), streams.output.clone());
    let (input_over, no_shutdown) = (streams.input_over.clone(), streams.no_shutdown);
    let named = |name: &str| thread::Builder::new().name(name.into());
    let writer = named("stdout").spawn(move || write_stdout(&writes, &output, printer));
    let reads = move || {
        let mut source = Source { editor, chunk: vec![0; CHUNK] };
        if send_stdin(&peer, &mut source, &mut outgoing, &until_drained) {
            // The loop may have ended: then there is nothing to finish.
            let _ = peer.post(move |mut socket| {
                input_over.store(true, Ordering::Relaxed);
                if !no_shutdown || socket.state() == State::WriteOnly {
                    socket.finish();
                }
            });
        }
    };
    named("stdin").spawn(reads).map_err(|error| error.to_string())?;
    writer.map_err(|error| error.to_string())
}

/// stdin, as bytes or as edited lines.
struct Source {
    editor: Option<LineEditor>,
    chunk: Vec<u8>,
}

impl Source {
    /// What comes next; nothing at the end.
    fn next(&mut self) -> Result<Vec<u8>, Failure> {
        match &mut self.editor {
            None => {
                let read = stdio::read(&mut self.chunk);
                let n = read.map_err(|error| Failure::Text(format!("cannot read stdin: {error}")))?;
                Ok(self.chunk[..n].to_vec())
            }
            Some(editor) => match editor.read().map_err(Failure::Text)? {
                Typed::Line(line) => Ok((line + "\n").into_bytes()),
                Typed::End => Ok(Vec::new()),
                Typed::Interrupt => Err(Failure::Interrupt),
            },
        }
    }
}

/// Hands stdin to the loop, and waits while the socket is full: at most one chunk is in memory beside the queue. True:
/// stdin has ended, and all of it was queued.
fn send_stdin(
    peer: &Peer,
    source: &mut Source,
    outgoing: &mut Outgoing,
    until_drained: &Receiver<()>,
) -> bool {
    loop {
        let next = source.next().and_then(|bytes| {
            let over = bytes.is_empty();
            let wire = if over { outgoing.finish() } else { outgoing.feed(&bytes) };
            wire.map(|wire| (wire, over)).map_err(Failure::Text)
        });
        let (wire, over) = match next {
            Ok(next) => next,
            Err(why) => {
                peer.fail(why);
                return false;
            }
        };
        let (sent, full) = channel();
        let posted = peer.post(move |mut socket| {
            socket.send(&wire);
            // The receiver has gone only if the process is ending.
            let _ = sent.send(socket.is_full());
        });
        match (posted, full.recv()) {
            (Ok(()), Ok(_)) if over => return true,
            (Ok(()), Ok(false)) => {}
            (Ok(()), Ok(true)) if until_drained.recv().is_ok() => {}
            _ => return false, // The connection has ended.
        }
    }
}

/// Writes what has arrived to stdout.
fn write_stdout(peer: &Peer, output: &Output, printer: Option<Box<dyn ExternalPrinter + Send>>) {
    let outcome = match printer {
        Some(mut printer) => terminal::print_lines(output, &mut *printer),
        None => write_pieces(peer, output),
    };
    let Err(error) = outcome else { return };
    // A reader that has closed the pipe is no failure: that is how `head` ends.
    match error.kind() {
        ErrorKind::BrokenPipe => drop(peer.post(|mut socket| socket.abort())),
        _ => peer.fail(Failure::Text(format!("cannot write to stdout: {error}"))),
    }
}

fn write_pieces(peer: &Peer, output: &Output) -> io::Result<()> {
    while let Some(piece) = output.take() {
        stdio::write(&piece)?;
        if output.written(piece.len()) {
            // The connection may have ended.
            let _ = peer.post(|mut socket| socket.resume());
        }
    }
    Ok(())
}
