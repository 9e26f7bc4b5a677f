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

/// The handshake: the client sends `HELLO\n`, the server answers `WELCOME\n`. Then each letter is moved by 13 places
/// (ROT13), which is no encryption.
struct Rot13 {
    is_client: bool,
    /// What the other end has to send first.
    expected: &'static [u8],
    received: usize,
    has_started: bool,
}

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
        let expected: &[u8] = if self.is_client { b"WELCOME\n" } else { b"HELLO\n" };
        Ok(Box::new(Rot13 { is_client: self.is_client, expected, received: 0, has_started: false }))
    }

    fn starts_at_once(&self) -> bool {
        self.is_client
    }
}

impl Filter for Rot13 {
    fn open(&mut self, wire: &mut [u8], out: &mut Vec<u8>) -> Opened {
        if self.is_client && !std::mem::replace(&mut self.has_started, true) {
            out.extend_from_slice(b"HELLO\n");
        }
        let left = &self.expected[self.received..];
        let n = left.len().min(wire.len());
        if wire[..n] != left[..n] {
            return Opened { error: Some("this is no handshake".into()), ..Opened::default() };
        }
        self.received += n;
        if self.received < self.expected.len() {
            return Opened::default();
        }
        if n > 0 && !self.is_client {
            out.extend_from_slice(b"WELCOME\n");
        }
        wire.copy_within(n.., 0);
        let plaintext = wire.len() - n;
        wire[..plaintext].iter_mut().for_each(|byte| *byte = rot13(*byte));
        Opened { plaintext, ready: true, ..Opened::default() }
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        out.extend(plain.iter().map(|&byte| rot13(byte)));
        Ok(())
    }

    fn ends_with_fin(&self) -> bool {
        true
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
