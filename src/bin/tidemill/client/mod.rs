//! The client: stdin to a socket, the socket to stdout.

mod codec;
mod pump;
mod stdio;
mod terminal;

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidemill::{
    Address, CloseReason, ClosedInfo, ConnId, DialOptions, Input, Limits, ListenOptions, Reactor, Service,
    Socket, SocketLimits, Sockets, State,
};

use crate::args::{CommandError, ConnectArgs};
use codec::{Incoming, Outgoing};
use pump::{Failed, Failure, Peer, Streams, start_threads};
use stdio::Output;
use terminal::Settings;

/// What the service and the function that runs the loop share.
#[derive(Default)]
struct Shared {
    /// The connection, once it is established.
    established: Option<ConnId>,
    established_at: Option<Instant>,
    /// How it ended.
    gone: Option<ClosedInfo>,
    /// Whether the peer's end came before ours was sent.
    peer_ended_first: bool,
    /// Whether all that came is an alert of TLS, and TLS is not spoken.
    is_tls_alert: bool,
}

/// Runs until both sides have ended. `Ok` means that the connection was established and ended properly: that is what a
/// script wants to know.
pub fn connect(options: &ConnectArgs) -> Result<(), CommandError> {
    let settings = Arc::new(Settings::of_stdin());
    let edits =
        io::stdin().is_terminal() && io::stdout().is_terminal() && !options.raw && !options.only_connect;
    handle_signals(edits.then(|| settings.clone())).map_err(|error| CommandError::Run(error.to_string()))?;
    let failed = Failed::default();
    let outcome = talk(options, edits, &failed);
    if edits {
        settings.restore();
    }
    let (shared, about) = outcome.map_err(CommandError::Run)?;
    if options.verbose {
        tell_end(&shared);
    }
    match failed.get() {
        Some(Failure::Text(text)) => Err(CommandError::Run(text.clone())),
        Some(Failure::Interrupt) => Err(CommandError::Interrupted(SIGINT)),
        None if shared.is_tls_alert => Err(CommandError::Run(format!(
            "{about} answers with an alert of TLS: it does not understand cleartext; use --tls"
        ))),
        None => verdict(shared.gone.as_ref(), &about),
    }
}

/// SIGINT and SIGTERM end the process at once. Their default action would do so too, but not for process 1 of a
/// container, and it would leave a terminal in the mode of line editing.
fn handle_signals(settings: Option<Arc<Settings>>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            if let Some(settings) = settings {
                settings.restore();
            }
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

/// What the end of the connection means for the exit code.
fn verdict(gone: Option<&ClosedInfo>, about: &Address) -> Result<(), CommandError> {
    use CloseReason::{Aborted, ConnectTimeout, Finished, Idle, Local, Unreachable, Unresolved};
    let Some(gone) = gone else { return Ok(()) };
    let text = match (gone.reason, &gone.dial_error) {
        (Finished | Local | Aborted | Idle, _) => return Ok(()),
        (Unresolved | Unreachable(_) | ConnectTimeout, Some(error)) => error.to_string(),
        (why, _) => match &gone.filter_error {
            Some(error) => format!("{about}: {why}: {error}"),
            None => format!("{about}: {why}"),
        },
    };
    Err(CommandError::Run(text))
}

/// One connection from its begin to its end; gives what is known of it, and its address.
fn talk(options: &ConnectArgs, edits: bool, failed: &Failed) -> Result<(Shared, Address), String> {
    let what = if options.listen { "listen on" } else { "connect to" };
    let cannot = |error: io::Error| format!("cannot {what} {}: {error}", options.to);
    let mut reactor = Reactor::new(Limits::default()).map_err(cannot)?;
    let safely = io::stdout().is_terminal() && !options.raw;
    let incoming = Incoming::new(options.framing.clone(), options.hex, safely);
    let limits = limits(options, incoming.inbox_limit());
    let shared = Rc::new(RefCell::new(Shared::default()));
    let (drained, until_drained) = channel();
    let streams = Streams {
        output: Output::default(),
        // A terminal has no end of its own: the user is told at once that the peer has gone, by the end of the program.
        input_over: Arc::new(AtomicBool::new(io::stdin().is_terminal())),
        no_shutdown: options.no_shutdown,
    };
    let relay = Relay {
        incoming,
        drained,
        streams: streams.clone(),
        failed: failed.clone(),
        shared: shared.clone(),
        only: options.only_connect,
        listens: options.listen,
        verbose: options.verbose,
    };
    let service = reactor.add_with(relay, limits);
    let listener = match options.listen {
        true => {
            let listener = reactor.listen_with(&options.to, service, &ListenOptions::default());
            let listener = listener.map_err(|error| error.to_string())?;
            if let Some(address) = reactor.local_addr(listener) {
                note(&format!("listening on {address}"));
            }
            Some(listener)
        }
        false => {
            let (filter, local) = (options.tls.client()?, options.source);
            let dial = DialOptions { filter, local, ..DialOptions::default() };
            reactor.dial_with(&options.to, service, dial).map_err(|error| cannot(error.into()))?;
            None
        }
    };
    while shared.borrow().established.is_none() && shared.borrow().gone.is_none() {
        reactor.turn(None).map_err(cannot)?;
    }
    if let Some(listener) = listener {
        reactor.close_listener(listener);
    }
    let established = shared.borrow().established;
    let mut writer = None;
    if let Some(id) = established.filter(|_| !options.only_connect) {
        let outgoing = Outgoing::new(options.framing.clone(), options.crlf);
        let peer = Peer { handle: reactor.handle(), id, failed: failed.clone() };
        writer = Some(start_threads(peer, outgoing, until_drained, &streams, edits)?);
    }
    reactor.run().map_err(cannot)?;
    streams.output.end();
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    let peer = shared.borrow().gone.as_ref().map(|gone| gone.peer.clone());
    let about = if options.listen { peer.unwrap_or_else(|| options.to.clone()) } else { options.to.clone() };
    Ok((shared.take(), about))
}

/// The user decides how long to wait and for what; only connecting has a limit by default.
fn limits(options: &ConnectArgs, message: usize) -> SocketLimits {
    SocketLimits {
        idle: options.wait.0,
        half_closed: None,
        min_read_rate: None,
        min_write_rate: None,
        read_when_full: true,
        connect: options.timeout.0,
        handshake: options.timeout.0,
        message,
        ..SocketLimits::default()
    }
}

/// Whether these bytes are one alert of TLS in cleartext: type 21, version 3.x, length 2, a level and a description
/// (RFC 8446, 5.1 and 6). That is how most servers that speak TLS answer what is no handshake.
fn is_tls_alert(answer: &[u8]) -> bool {
    matches!(answer, [21, 3, _, 0, 2, 1..=2, _])
}

/// One line on stderr. Nothing can be done about a stderr that is closed.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "tidemill: {text}");
}

fn tell_end(shared: &Shared) {
    let Some(gone) = &shared.gone else { return };
    let first = match gone.reason {
        CloseReason::Finished if shared.peer_ended_first => ", the peer first",
        CloseReason::Finished => ", we first",
        _ => "",
    };
    let ClosedInfo { bytes_in, bytes_out, reason, .. } = gone;
    let duration = shared.established_at.map_or(Duration::ZERO, |since| since.elapsed());
    note(&format!("closed: {reason}{first}; {bytes_out} bytes sent, {bytes_in} received in {duration:.2?}"));
}

/// What arrives goes to the thread of stdout.
struct Relay {
    incoming: Incoming,
    drained: Sender<()>,
    streams: Streams,
    failed: Failed,
    shared: Rc<RefCell<Shared>>,
    /// Only to see whether the server accepts.
    only: bool,
    listens: bool,
    verbose: bool,
}

impl Relay {
    fn establish(&mut self, socket: &mut Socket<'_>) {
        let mut shared = self.shared.borrow_mut();
        (shared.established, shared.established_at) = (Some(socket.id()), Some(socket.now()));
        drop(shared);
        if self.only {
            socket.close();
        }
        if !self.verbose {
            return;
        }
        let how = if self.listens { "accepted" } else { "connected to" };
        let local = socket.local_addr().map_or(String::new(), |local| format!(", local address {local}"));
        note(&format!("{how} {}{local}", socket.peer_addr()));
        if let Some(info) = socket.filter_info() {
            let protocol = info.protocol.map(|name| String::from_utf8_lossy(&name).into_owned());
            let alpn = protocol.map_or("no ALPN".to_string(), |name| format!("ALPN {}", name.escape_debug()));
            let certificates = match info.peer_certificates.len() {
                1 => "1 certificate".to_string(),
                count => format!("{count} certificates"),
            };
            let resumed = if info.resumed { ", resumed" } else { "" };
            note(&format!("{}, {}, {alpn}, {certificates}{resumed}", info.version, info.cipher));
        }
    }
}

impl Service for Relay {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        if self.listens {
            let taken = self.shared.borrow().established.is_some();
            if taken { socket.abort() } else { self.establish(socket) }
        }
    }

    fn connected(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        self.establish(socket);
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let is_all = socket.bytes_in() == input.len() as u64 && socket.filter_info().is_none();
        self.shared.borrow_mut().is_tls_alert = is_all && is_tls_alert(input.bytes());
        let mut out = Vec::new();
        let shown = self.incoming.show(input, &mut out);
        if !out.is_empty() && self.streams.output.put(out) {
            socket.pause();
        }
        if let Err((why, text)) = shown {
            let _ = self.failed.set(Failure::Text(format!("{}: {text}", socket.peer_addr())));
            socket.close_as(why);
        }
    }

    fn end(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        // Where our end was sent before, the socket is past being write-only.
        self.shared.borrow_mut().peer_ended_first = socket.state() == State::WriteOnly;
        // The peer may have ended only its own direction: what stdin still holds is sent. If the peer has gone, a write
        // fails and the connection ends with that.
        if self.streams.input_over.load(Ordering::Relaxed) {
            socket.finish();
        } else if self.verbose {
            note("the peer has sent FIN; stdin is still sent");
        }
    }

    fn drained(&mut self, _: &mut (), _: &mut Socket<'_>) {
        // The thread of stdin may have ended.
        let _ = self.drained.send(());
    }

    fn closed(&mut self, (): (), gone: &ClosedInfo, _: &mut Sockets<'_>) {
        let mut shared = self.shared.borrow_mut();
        if shared.established.is_some_and(|id| id != gone.id) {
            return; // A further one, at a listener.
        }
        shared.gone = Some(gone.clone());
        let mut out = Vec::new();
        self.incoming.finish(&mut out);
        self.streams.output.put(out);
    }
}
