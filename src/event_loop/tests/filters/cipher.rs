//! A filter of records without a handshake: a length (u16), then bytes XORed with a keystream that goes on from record
//! to record. A toy, not a cipher to use.

use std::io;

use crate::base::address::Address;
use crate::base::filter::{Filter, FilterConfig, FilterFactory, FilterInfo, Opened};

/// One direction: the state of its keystream.
#[derive(Clone)]
pub(super) struct Keystream(u32);

impl Keystream {
    pub(super) fn new() -> Keystream {
        Keystream(0x5eed)
    }

    fn apply(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte ^= (self.0 >> 24) as u8;
        }
    }

    /// The record of these bytes.
    pub(super) fn record(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut wire = (plain.len() as u16).to_be_bytes().to_vec();
        wire.extend_from_slice(plain);
        self.apply(&mut wire[2..]);
        wire
    }

    /// The plaintext of complete records.
    pub(super) fn open(&mut self, mut wire: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        while let [high, low, rest @ ..] = wire {
            let (body, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            let at = plain.len();
            plain.extend_from_slice(body);
            self.apply(&mut plain[at..]);
            wire = rest;
        }
        plain
    }
}

struct Cipher {
    opens: Keystream,
    seals: Keystream,
    buffered: Vec<u8>,
}

impl Filter for Cipher {
    fn buffered(&self) -> usize {
        self.buffered.len()
    }

    fn open(&mut self, wire: &mut [u8], _: &mut Vec<u8>) -> Opened {
        wire[..self.buffered.len()].copy_from_slice(&std::mem::take(&mut self.buffered));
        let (mut at, mut plaintext) = (0, 0);
        while let Some(&[high, low]) = wire.get(at..at + 2) {
            let body = at + 2..at + 2 + usize::from(u16::from_be_bytes([high, low]));
            if body.end > wire.len() {
                break;
            }
            at = body.end;
            self.opens.apply(&mut wire[body.clone()]);
            wire.copy_within(body.clone(), plaintext);
            plaintext += body.len();
        }
        self.buffered = wire[at..].to_vec();
        Opened { plaintext, ready: true, ..Opened::default() }
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        out.extend(self.seals.record(plain));
        Ok(())
    }

    fn ends_with_fin(&self) -> bool {
        self.buffered.is_empty()
    }

    fn info(&self) -> FilterInfo {
        FilterInfo::new("toy", "XOR")
    }
}

struct Ciphers;

impl FilterFactory for Ciphers {
    fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
        Ok(Box::new(Cipher { opens: Keystream::new(), seals: Keystream::new(), buffered: Vec::new() }))
    }

    fn starts_at_once(&self) -> bool {
        true
    }
}

pub(super) fn cipher() -> FilterConfig {
    FilterConfig::new(Ciphers)
}
