//! What scenarios serve beside the services of the crate: a line service that starts a filter when it is asked to, and
//! a filter that can be read by eye. It stands in for TLS, which a page cannot have.

use std::io;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::filter::{Filter, FilterConfig, FilterFactory, FilterInfo, Opened};
use crate::base::leaving::Leaving;
use crate::connection::socket::Socket;
use crate::parts::inbox::Input;
use crate::service::Service;

/// Works for a second on each line, and takes no other meanwhile: it is paused. When its peer leaves, it stops.
pub(super) struct Worker;

impl Service for Worker {
    /// The line that it works on.
    type Session = Vec<u8>;

    fn open(&mut self, _: &mut Socket<'_>) -> Vec<u8> {
        Vec::new()
    }

    fn data(&mut self, line: &mut Vec<u8>, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let Some(length) = input.bytes().iter().position(|&byte| byte == b'\n') else { return };
        line.extend_from_slice(input.take(length + 1));
        socket.pause();
        socket.notice_leaving(true);
        socket.set_alarm(Some(Duration::from_secs(1)));
    }

    fn alarm(&mut self, line: &mut Vec<u8>, socket: &mut Socket<'_>, _: u64) {
        socket.send(std::mem::take(line));
        socket.notice_leaving(false);
        socket.resume();
    }

    fn left(&mut self, _: &mut Vec<u8>, socket: &mut Socket<'_>, _: Leaving) {
        socket.close();
    }

    fn end(&mut self, _: &mut Vec<u8>, socket: &mut Socket<'_>) {
        socket.finish();
    }
}

/// Echoes lines. `STARTTLS` is answered in clear text; what follows is behind the filter, as in SMTP (RFC 3207).
pub(super) struct StartTls;

impl Service for StartTls {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        socket.send("220 ready\n");
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(length) = input.bytes().iter().position(|&byte| byte == b'\n') {
            let line = input.take(length + 1);
            if line == b"STARTTLS\n" {
                socket.send("220 go ahead\n");
                // What has arrived behind the line is the beginning of the handshake.
                return socket.start_filter(server());
            }
            socket.send(line);
        }
    }

    fn filter_started(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        socket.send("encrypted from here on\n");
    }

    fn end(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        socket.finish();
    }
}

/// The handshake: `HELLO\n`, which the server answers with `WELCOME\n`, and the client that with `THANKS\n`. Then each
/// letter is moved by 13 places (ROT13), which is no encryption. EOT (4) announces the end. It opens at most `PIECE`
/// bytes at a time, as a record layer opens a record.
struct Rot13 {
    /// The handshake that is left: what the other end has to send, and the answer to it.
    handshake: &'static [(&'static [u8], &'static [u8])],
    /// How much of the next message has come.
    received: usize,
    /// Opened, and not returned yet.
    opened: Vec<u8>,
    has_ended: bool,
}

const CLIENT: &[(&[u8], &[u8])] = &[(b"", b"HELLO\n"), (b"WELCOME\n", b"THANKS\n")];
const SERVER: &[(&[u8], &[u8])] = &[(b"HELLO\n", b"WELCOME\n"), (b"THANKS\n", b"")];
const PIECE: usize = 16;
const EOT: u8 = 4;

struct Rot13Factory {
    is_client: bool,
}

pub(super) fn server() -> FilterConfig {
    FilterConfig::new(Rot13Factory { is_client: false })
}

pub(super) fn client() -> FilterConfig {
    FilterConfig::new(Rot13Factory { is_client: true })
}

impl FilterFactory for Rot13Factory {
    fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
        let handshake = if self.is_client { CLIENT } else { SERVER };
        Ok(Box::new(Rot13 { handshake, received: 0, opened: Vec::new(), has_ended: false }))
    }

    fn starts_at_once(&self) -> bool {
        self.is_client
    }
}

impl Filter for Rot13 {
    fn open(&mut self, wire: &mut [u8], out: &mut Vec<u8>) -> Opened {
        let mut n = 0;
        while let [(expected, answer), left @ ..] = self.handshake {
            let next = &expected[self.received..];
            let arrived = next.len().min(wire.len() - n);
            if wire[n..n + arrived] != next[..arrived] {
                return Opened { error: Some("this is no handshake".into()), ..Opened::default() };
            }
            (n, self.received) = (n + arrived, self.received + arrived);
            if self.received < expected.len() {
                return Opened::default();
            }
            out.extend_from_slice(answer);
            (self.handshake, self.received) = (left, 0);
        }
        self.has_ended |= wire[n..].contains(&EOT);
        self.opened.extend(wire[n..].iter().filter(|&&byte| byte != EOT).map(|&byte| rot13(byte)));
        self.more(wire, out)
    }

    fn more(&mut self, room: &mut [u8], _: &mut Vec<u8>) -> Opened {
        let plaintext = self.opened.len().min(PIECE).min(room.len());
        room[..plaintext].copy_from_slice(&self.opened[..plaintext]);
        self.opened.drain(..plaintext);
        let more = !self.opened.is_empty();
        Opened { plaintext, ready: true, more, peer_ended: self.has_ended && !more, ..Opened::default() }
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        out.extend(plain.iter().map(|&byte| rot13(byte)));
        Ok(())
    }

    fn seal_end(&mut self, out: &mut Vec<u8>) {
        out.push(EOT);
    }

    fn info(&self) -> FilterInfo {
        FilterInfo::new("ROT13", "")
    }
}

fn rot13(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' => (byte - b'a' + 13) % 26 + b'a',
        b'A'..=b'Z' => (byte - b'A' + 13) % 26 + b'A',
        other => other,
    }
}
