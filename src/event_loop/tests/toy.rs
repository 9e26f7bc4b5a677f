//! A filter that a test can read: its handshake is three words, its cipher turns each byte around.
//!
//! ```text
//!     caller  HELLO\n ─▶ ◀─ WELCOME\n  THANKS\n ─▶     then records both ways: a letter, a length (u16), bytes
//!                                                      D bytes, E the end, X an alert
//! ```

use std::io;

use crate::base::address::Address;
use crate::base::filter::{Filter, Opened, Secure, Secured, Security};

const HELLO: &[u8] = b"HELLO\n";
const WELCOME: &[u8] = b"WELCOME\n";
const THANKS: &[u8] = b"THANKS\n";

/// Either side's.
pub(super) struct Toy {
    calls: bool,
    /// The words still to be heard, last first.
    awaits: Vec<&'static [u8]>,
    said_hello: bool,
    kept: Vec<u8>,
    named: String,
    dead: bool,
}

pub(super) struct Toys {
    calls: bool,
}

pub(super) fn server() -> Security {
    Security::new(Toys { calls: false })
}

pub(super) fn client() -> Security {
    Security::new(Toys { calls: true })
}

impl Secure for Toys {
    fn filter(&self, peer: &Address) -> io::Result<Box<dyn Filter>> {
        if peer.to_string().starts_with("nobody") {
            return Err(io::Error::other("nobody has no name to check"));
        }
        Ok(Box::new(Toy::new(self.calls, peer.to_string())))
    }
}

impl Toy {
    pub(super) fn new(calls: bool, named: String) -> Toy {
        let awaits = if calls { vec![WELCOME] } else { vec![THANKS, HELLO] };
        Toy { calls, awaits, said_hello: false, kept: Vec::new(), named, dead: false }
    }

    /// Hears the words of a handshake; how many bytes they were.
    fn greet(&mut self, wire: &[u8], out: &mut Vec<u8>, opened: &mut Opened) -> usize {
        let mut at = 0;
        if self.calls && !self.said_hello {
            out.extend_from_slice(HELLO);
            self.said_hello = true;
        }
        while let Some(word) = self.awaits.last() {
            let heard = &wire[at..wire.len().min(at + word.len())];
            if !word.starts_with(heard) {
                opened.broken = Some("these are no words of mine".into());
                out.extend_from_slice(b"X\0\0");
                return wire.len();
            }
            if heard.len() < word.len() {
                return at;
            }
            at += word.len();
            match *word {
                HELLO => out.extend_from_slice(WELCOME),
                WELCOME => out.extend_from_slice(THANKS),
                _ => {}
            }
            self.awaits.pop();
        }
        at
    }
}

impl Filter for Toy {
    fn kept(&self) -> usize {
        self.kept.len()
    }

    fn open(&mut self, wire: &mut [u8], out: &mut Vec<u8>) -> Opened {
        let mut opened = Opened::default();
        wire[..self.kept.len()].copy_from_slice(&std::mem::take(&mut self.kept));
        let mut at = self.greet(wire, out, &mut opened);
        opened.ready = self.awaits.is_empty() && opened.broken.is_none();
        while let (true, Some(&[kind, high, low])) = (opened.ready, wire.get(at..at + 3)) {
            let length = usize::from(u16::from_be_bytes([high, low]));
            let body = at + 3..at + 3 + length;
            match kind {
                b'E' => opened.ended = true,
                b'D' if body.end > wire.len() => break,
                b'D' => {
                    wire.copy_within(body.clone(), opened.plain);
                    let plain = &mut wire[opened.plain..][..length];
                    plain.iter_mut().for_each(|byte| *byte ^= 0xff);
                    opened.plain += length;
                }
                _ => {
                    opened.broken = Some(format!("{kind} is no kind of record"));
                    out.extend_from_slice(b"X\0\0");
                    self.dead = true;
                    at = wire.len();
                    break;
                }
            }
            at = body.end;
        }
        self.kept = wire[at..].to_vec();
        opened
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        assert!(self.awaits.is_empty(), "sealed before the handshake was done");
        assert!(!self.dead, "sealed after it was broken");
        out.extend(record(plain));
        Ok(())
    }

    fn seal_end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"E\0\0");
    }

    fn secured(&self) -> Secured {
        Secured { server_name: Some(self.named.clone()), ..Secured::default() }
    }
}

/// What stands on the wire for these bytes.
pub(super) fn record(plain: &[u8]) -> Vec<u8> {
    let mut wire = vec![b'D'];
    wire.extend((plain.len() as u16).to_be_bytes());
    wire.extend(plain.iter().map(|byte| byte ^ 0xff));
    wire
}

/// The bytes that stand on the wire, and how many records they are.
pub(super) fn unrecord(mut wire: &[u8]) -> (Vec<u8>, usize) {
    let (mut plain, mut records) = (Vec::new(), 0);
    while let [b'D', high, low, rest @ ..] = wire {
        let (body, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        plain.extend(body.iter().map(|byte| byte ^ 0xff));
        records += 1;
        wire = rest;
    }
    assert!(wire.is_empty() || wire == b"E\0\0", "{wire:?} is no record");
    (plain, records)
}
