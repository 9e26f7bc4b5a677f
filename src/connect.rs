//! The client: stdin to a socket, the socket to stdout.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use tidemill::text::Terminal;
use tidemill::{Closed, ConnId, Handle, Input, Limits, Reactor, Service, Socket, SocketLimits, Sockets};

use crate::cli::Connect;

/// How much of stdin is read at once.
const CHUNK: usize = 64 * 1024;

pub fn connect(options: &Connect) -> Result<(), String> {
    let cannot = |why: String| format!("cannot connect to {}: {why}", options.to);
    let addresses = options.to.to_socket_addrs().map_err(|error| cannot(error.to_string()))?;
    let mut last = "the name stands for no address".to_string();
    for address in addresses {
        match talk(address, options).map_err(|error| cannot(error.to_string()))? {
            Ending::NotConnected(why) => last = why,
            Ending::Failed(why) => return Err(why),
            Ending::Talked(Closed::Finished | Closed::Local | Closed::Aborted) => return Ok(()),
            Ending::Talked(why) => return Err(format!("{}: {why}", options.to)),
        }
    }
    Err(cannot(last))
}

/// How one attempt went.
enum Ending {
    NotConnected(String),
    Talked(Closed),
    /// Stdin or stdout failed.
    Failed(String),
}

/// What went wrong with stdin or stdout, on either thread.
type Failed = Arc<OnceLock<String>>;

fn talk(address: SocketAddr, options: &Connect) -> io::Result<Ending> {
    let mut reactor = Reactor::new(Limits::default())?;
    // Whoever started us decides how long to wait and for what; only connecting has a limit.
    let limits = SocketLimits {
        idle: None,
        half_closed: None,
        read_pace: None,
        write_pace: None,
        read_when_full: true,
        connect: options.timeout.0,
        ..SocketLimits::default()
    };
    let why = Rc::new(RefCell::new(None));
    let (drained, until_drained) = channel();
    let safely = (io::stdout().is_terminal() && !options.raw).then(Terminal::default);
    let failed = Failed::default();
    let relay = Relay { safely, text: String::new(), drained, failed: failed.clone(), why: why.clone() };
    let service = reactor.add_with(relay, limits);
    let id = reactor.dial(address, service)?;
    while reactor.sockets().get(id).is_some_and(|socket| socket.is_connecting()) {
        reactor.turn(None)?;
    }
    if reactor.sockets().get(id).is_none() {
        reactor.run()?;
        let reason = match why.take() {
            Some(Closed::Unreachable(error)) => plain(error.into()),
            Some(other) => other.to_string(),
            None => "it ended before it began".to_string(),
        };
        return Ok(Ending::NotConnected(reason));
    }
    let handle = reactor.handle();
    let stdin_failed = failed.clone();
    let sends = move || send_stdin(&handle, id, &until_drained, &stdin_failed);
    thread::Builder::new().name("stdin".into()).spawn(sends)?;
    reactor.run()?;
    if let Some(failed) = failed.get() {
        return Ok(Ending::Failed(failed.clone()));
    }
    Ok(Ending::Talked(why.take().unwrap_or(Closed::Finished)))
}

/// The system's sentence without its number, and uncapitalised, for the middle of ours.
fn plain(error: io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

/// Reads stdin, which cannot be polled when it is a file, and hands it to the loop; waits while the socket is full, so
/// that one chunk at most is under way beyond what is queued.
fn send_stdin(handle: &Handle, id: ConnId, until_drained: &Receiver<()>, failed: &Failed) {
    let mut stdin = io::stdin().lock();
    let mut chunk = vec![0; CHUNK];
    loop {
        let bytes = match stdin.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => chunk[..n].to_vec(),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                let _ = failed.set(format!("cannot read stdin: {}", plain(error)));
                break;
            }
        };
        let (sent, full) = channel();
        let posted = handle.post(move |sockets| {
            if let Some(mut socket) = sockets.get(id) {
                socket.send(&bytes);
                // Who asked has gone only if the process is ending.
                let _ = sent.send(socket.is_full());
            }
        });
        match (posted, full.recv()) {
            (Ok(()), Ok(false)) => {}
            (Ok(()), Ok(true)) => {
                if until_drained.recv().is_err() {
                    return;
                }
            }
            _ => return, // The connection has ended.
        }
    }
    // The same holds here: then there is nothing to finish.
    let _ = handle.post(move |sockets| {
        if let Some(mut socket) = sockets.get(id) {
            socket.finish();
        }
    });
}

/// What arrives goes to stdout.
struct Relay {
    /// For a terminal that must not obey what arrives.
    safely: Option<Terminal>,
    text: String,
    drained: Sender<()>,
    failed: Failed,
    why: Rc<RefCell<Option<Closed>>>,
}

impl Relay {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match &mut self.safely {
            None => stdout.write_all(bytes)?,
            Some(terminal) => {
                self.text.clear();
                terminal.feed(bytes, &mut self.text);
                stdout.write_all(self.text.as_bytes())?;
            }
        }
        stdout.flush()
    }
}

impl Service for Relay {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        if let Err(error) = self.write(input.take_all()) {
            if error.kind() != ErrorKind::BrokenPipe {
                let _ = self.failed.set(format!("cannot write to stdout: {}", plain(error)));
            }
            socket.abort();
        }
    }

    fn drained(&mut self, _: &mut (), _: &mut Socket<'_>) {
        // The reader of stdin may have ended before.
        let _ = self.drained.send(());
    }

    fn closed(&mut self, _: (), _: ConnId, why: Closed, _: &mut Sockets<'_>) {
        if let Some(terminal) = &mut self.safely {
            self.text.clear();
            terminal.finish(&mut self.text);
            let _ = io::stdout().write_all(self.text.as_bytes());
        }
        *self.why.borrow_mut() = Some(why);
    }
}
