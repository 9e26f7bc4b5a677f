//! A filter that can be read by eye: its handshake is three words, its cipher inverts each byte.
//!
//! ```text
//!     client  HELLO\n ─▶ ◀─ WELCOME\n  THANKS\n ─▶     then records both ways: a letter, a length (u16), bytes
//!                                                      D bytes, E the end, X an alert
//! ```

use std::io;

use crate::base::address::Address;
use crate::base::filter::{Filter, FilterConfig, FilterFactory, FilterInfo, Opened};

const HELLO: &[u8] = b"HELLO\n";
const WELCOME: &[u8] = b"WELCOME\n";
const THANKS: &[u8] = b"THANKS\n";

/// The filter of the client or of the server.
pub(super) struct TestFilter {
    is_client: bool,
    /// The words of the handshake that are still to be received, last first.
    expected: Vec<&'static [u8]>,
    sent_hello: bool,
    buffered: Vec<u8>,
    server_name: String,
    failed: bool,
}

pub(super) struct TestFilters {
    calls: bool,
}

pub(super) fn server() -> FilterConfig {
    FilterConfig::new(TestFilters { calls: false })
}

pub(super) fn client() -> FilterConfig {
    FilterConfig::new(TestFilters { calls: true })
}

impl FilterFactory for TestFilters {
    fn filter(&self, peer: &Address) -> io::Result<Box<dyn Filter>> {
        if peer.to_string().starts_with("nobody") {
            return Err(io::Error::other("nobody has no name to check"));
        }
        Ok(Box::new(TestFilter::new(self.calls, peer.to_string())))
    }
}

impl TestFilter {
    pub(super) fn new(is_client: bool, server_name: String) -> TestFilter {
        let expected = if is_client { vec![WELCOME] } else { vec![THANKS, HELLO] };
        TestFilter {
            is_client,
            expected,
            sent_hello: false,
            buffered: Vec::new(),
            server_name,
            failed: false,
        }
    }

    /// Receives words of a handshake; returns how many bytes they were.
    fn handshake(&mut self, wire: &[u8], out: &mut Vec<u8>, opened: &mut Opened) -> usize {
        let mut at = 0;
        if self.is_client && !self.sent_hello {
            out.extend_from_slice(HELLO);
            self.sent_hello = true;
        }
        while let Some(word) = self.expected.last() {
            let received = &wire[at..wire.len().min(at + word.len())];
            if !word.starts_with(received) {
                opened.error = Some("these are no words of mine".into());
                out.extend_from_slice(b"X\0\0");
                return wire.len();
            }
            if received.len() < word.len() {
                return at;
            }
            at += word.len();
            match *word {
                HELLO => out.extend_from_slice(WELCOME),
                WELCOME => out.extend_from_slice(THANKS),
                _ => {}
            }
            self.expected.pop();
        }
        at
    }
}

impl Filter for TestFilter {
    fn buffered(&self) -> usize {
        self.buffered.len()
    }

    fn open(&mut self, wire: &mut [u8], out: &mut Vec<u8>) -> Opened {
        let mut opened = Opened::default();
        wire[..self.buffered.len()].copy_from_slice(&std::mem::take(&mut self.buffered));
        let mut at = self.handshake(wire, out, &mut opened);
        opened.ready = self.expected.is_empty() && opened.error.is_none();
        while let (true, Some(&[kind, high, low])) = (opened.ready, wire.get(at..at + 3)) {
            let length = usize::from(u16::from_be_bytes([high, low]));
            let body = at + 3..at + 3 + length;
            match kind {
                b'E' if length == 0 => opened.peer_ended = true,
                b'D' if body.end > wire.len() => break,
                b'D' => {
                    wire.copy_within(body.clone(), opened.plaintext);
                    let plain = &mut wire[opened.plaintext..][..length];
                    plain.iter_mut().for_each(|byte| *byte ^= 0xff);
                    opened.plaintext += length;
                }
                _ => {
                    opened.error = Some(format!("{kind} is no kind of record"));
                    out.extend_from_slice(b"X\0\0");
                    self.failed = true;
                    at = wire.len();
                    break;
                }
            }
            at = body.end;
        }
        self.buffered = wire[at..].to_vec();
        opened
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        assert!(self.expected.is_empty(), "sealed before the handshake was done");
        assert!(!self.failed, "sealed after it was broken");
        out.extend(record(plain));
        Ok(())
    }

    fn seal_end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"E\0\0");
    }

    fn info(&self) -> FilterInfo {
        FilterInfo { server_name: Some(self.server_name.clone()), ..FilterInfo::default() }
    }
}

/// The record for these bytes.
pub(super) fn record(plain: &[u8]) -> Vec<u8> {
    let mut wire = vec![b'D'];
    wire.extend((plain.len() as u16).to_be_bytes());
    wire.extend(plain.iter().map(|byte| byte ^ 0xff));
    wire
}

/// The plaintext of the records on the wire, and the number of records.
pub(super) fn parse_records(mut wire: &[u8]) -> (Vec<u8>, usize) {
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
