//! The client: stdin to a socket, the socket to stdout.

mod codec;

use std::cell::RefCell;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use tidemill::{
    CloseReason, ClosedInfo, ConnId, DialError, DialOptions, Handle, Input, Limits, Reactor, Service, Socket,
    SocketLimits, Sockets,
};

use crate::args::ConnectArgs;
use codec::{Incoming, Outgoing};

/// How much of stdin is read at once.
const CHUNK: usize = 64 * 1024;

/// What went wrong with stdin, stdout or a frame, on either thread.
type Failed = Arc<OnceLock<String>>;

/// How it ended, and why it never began.
#[derive(Default)]
struct Ending {
    why: Option<CloseReason>,
    failure: Option<DialError>,
    /// What was wrong with TLS.
    broken: Option<Box<str>>,
}

/// Talks until both sides have finished. What a script wants to know is whether it was connected and came to a proper
/// end: then this is `Ok`.
pub fn connect(options: &ConnectArgs) -> Result<(), String> {
    let cannot = |error: io::Error| format!("cannot connect to {}: {error}", options.to);
    let mut reactor = Reactor::new(Limits::default()).map_err(cannot)?;
    let safely = io::stdout().is_terminal() && !options.raw;
    let incoming = Incoming::new(options.framing.clone(), options.hex, safely);
    // Whoever started us decides how long to wait and for what; only connecting has a limit.
    let limits = SocketLimits {
        idle: options.wait.0,
        half_closed: None,
        min_read_rate: None,
        min_write_rate: None,
        read_when_full: true,
        connect: options.timeout.0,
        handshake: options.timeout.0,
        message: incoming.inbox_limit(),
        ..SocketLimits::default()
    };
    let ending = Rc::new(RefCell::new(Ending::default()));
    let (drained, until_drained) = channel();
    let failed = Failed::default();
    let relay = Relay {
        incoming,
        drained,
        failed: failed.clone(),
        ending: ending.clone(),
        only: options.only_connect,
    };
    let service = reactor.add_with(relay, limits);
    let filter = options.tls.client()?;
    let dial = DialOptions { filter, ..DialOptions::default() };
    let id = reactor.dial_with(&options.to, service, dial).map_err(cannot)?;
    while reactor.sockets().get(id).is_some_and(|socket| socket.is_connecting()) {
        reactor.turn(None).map_err(cannot)?;
    }
    if reactor.sockets().get(id).is_some() {
        let handle = reactor.handle();
        let outgoing = Outgoing::new(options.framing.clone(), options.crlf);
        let stdin_failed = failed.clone();
        let sends = move || send_stdin(&handle, id, outgoing, &until_drained, &stdin_failed);
        thread::Builder::new().name("stdin".into()).spawn(sends).map_err(cannot)?;
    }
    reactor.run().map_err(cannot)?;
    if let Some(failed) = failed.get() {
        return Err(failed.clone());
    }
    let Ending { why, failure, broken } = ending.take();
    match (failure, why) {
        (
            Some(failure),
            Some(CloseReason::Unresolved | CloseReason::Unreachable(_) | CloseReason::ConnectTimeout),
        ) => Err(failure.to_string()),
        (
            _,
            None
            | Some(CloseReason::Finished | CloseReason::Local | CloseReason::Aborted | CloseReason::Idle),
        ) => Ok(()),
        (_, Some(why)) => match broken {
            Some(broken) => Err(format!("{}: {why}: {broken}", options.to)),
            None => Err(format!("{}: {why}", options.to)),
        },
    }
}

/// Reads stdin, which cannot be polled when it is a file, and hands it to the loop; waits while the socket is full, so
/// that one chunk at most is under way beyond what is queued.
fn send_stdin(
    handle: &Handle,
    id: ConnId,
    mut outgoing: Outgoing,
    until_drained: &Receiver<()>,
    failed: &Failed,
) {
    let mut stdin = io::stdin().lock();
    let mut chunk = vec![0; CHUNK];
    let mut over = false;
    while !over {
        let bytes = match stdin.read(&mut chunk) {
            Ok(0) => {
                over = true;
                outgoing.finish()
            }
            Ok(n) => outgoing.feed(&chunk[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(format!("cannot read stdin: {error}")),
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(why) => {
                let _ = failed.set(why);
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
    incoming: Incoming,
    drained: Sender<()>,
    failed: Failed,
    ending: Rc<RefCell<Ending>>,
    /// Only to see whether somebody is there.
    only: bool,
}

impl Relay {
    /// A reader who has gone is no failure: that is how `head` ends.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        written.inspect_err(|error| {
            if error.kind() != ErrorKind::BrokenPipe {
                let _ = self.failed.set(format!("cannot write to stdout: {error}"));
            }
        })
    }
}

impl Service for Relay {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn connected(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        log::debug!("connected to {}", socket.peer_addr());
        if let Some(info) = socket.filter_info() {
            log::debug!("negotiated {} with {}", info.version, info.cipher);
        }
        if self.only {
            socket.close();
        }
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let mut out = Vec::new();
        let shown = self.incoming.show(input, &mut out);
        if self.write(&out).is_err() {
            return socket.abort();
        }
        if let Err((why, text)) = shown {
            let _ = self.failed.set(format!("{}: {text}", socket.peer_addr()));
            socket.close_as(why);
        }
    }

    fn drained(&mut self, _: &mut (), _: &mut Socket<'_>) {
        // The reader of stdin may have ended before.
        let _ = self.drained.send(());
    }

    fn closed(&mut self, _: (), gone: &ClosedInfo, _: &mut Sockets<'_>) {
        let mut out = Vec::new();
        self.incoming.finish(&mut out);
        let _ = self.write(&out);
        let (failure, broken) = (gone.dial_error.clone(), gone.filter_error.clone());
        *self.ending.borrow_mut() = Ending { why: Some(gone.reason), failure, broken };
    }
}
