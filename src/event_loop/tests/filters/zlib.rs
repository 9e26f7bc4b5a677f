//! A filter that compresses: one zlib stream (RFC 1950) in each direction, by `flate2`. Plaintext is up to a thousand
//! times as long as what arrives, and a stream announces its end.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::base::address::Address;
use crate::base::filter::{Filter, FilterConfig, FilterFactory, Opened};

/// Compresses one direction.
pub(super) struct Deflate(Compress);

impl Deflate {
    pub(super) fn new() -> Deflate {
        Deflate(Compress::new(Compression::fast(), true))
    }

    /// Appends what stands for `plain`, complete up to its last byte.
    pub(super) fn push(&mut self, plain: &[u8], how: FlushCompress, out: &mut Vec<u8>) -> Result<(), String> {
        let start = self.0.total_in();
        loop {
            out.reserve(1024);
            let used = (self.0.total_in() - start) as usize;
            let status = self.0.compress_vec(&plain[used..], out, how).map_err(|error| error.to_string())?;
            if status == Status::StreamEnd || out.len() < out.capacity() {
                return Ok(());
            }
        }
    }
}

struct Zlib {
    inflate: Decompress,
    deflate: Deflate,
    /// Received and not inflated yet: there was no room for what it becomes.
    input: Vec<u8>,
}

impl Zlib {
    fn inflate(&mut self, room: &mut [u8]) -> Opened {
        let mut opened = Opened { ready: true, ..Opened::default() };
        let mut used = 0;
        while opened.plaintext < room.len() {
            let (input, output) = (self.inflate.total_in(), self.inflate.total_out());
            let rest = &mut room[opened.plaintext..];
            let status = self.inflate.decompress(&self.input[used..], rest, FlushDecompress::None);
            used += (self.inflate.total_in() - input) as usize;
            let produced = (self.inflate.total_out() - output) as usize;
            opened.plaintext += produced;
            match status {
                Ok(Status::StreamEnd) => {
                    opened.peer_ended = true;
                    used = self.input.len();
                    break;
                }
                Ok(_) if produced == 0 => break,
                Ok(_) => {}
                Err(error) => {
                    opened.error = Some(error.to_string());
                    break;
                }
            }
        }
        self.input.drain(..used);
        opened.more = !opened.peer_ended && opened.plaintext > 0 && opened.plaintext == room.len();
        opened
    }
}

impl Filter for Zlib {
    fn buffered(&self) -> usize {
        self.input.len()
    }

    fn open(&mut self, wire: &mut [u8], _: &mut Vec<u8>) -> Opened {
        let kept = self.input.len();
        self.input.extend_from_slice(&wire[kept..]);
        self.inflate(wire)
    }

    fn more(&mut self, room: &mut [u8], _: &mut Vec<u8>) -> Opened {
        self.inflate(room)
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        self.deflate.push(plain, FlushCompress::Sync, out)
    }

    fn seal_end(&mut self, out: &mut Vec<u8>) {
        self.deflate.push(b"", FlushCompress::Finish, out).expect("its end can always be said");
    }
}

struct Zlibs;

impl FilterFactory for Zlibs {
    fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
        Ok(Box::new(Zlib { inflate: Decompress::new(true), deflate: Deflate::new(), input: Vec::new() }))
    }

    fn starts_at_once(&self) -> bool {
        true
    }
}

pub(super) fn zlib() -> FilterConfig {
    FilterConfig::new(Zlibs)
}

/// A whole stream for `plain`, with its end.
pub(super) fn deflated(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflate::new().push(plain, FlushCompress::Finish, &mut out).unwrap();
    out
}

/// The plaintext of a stream, and whether its end has come.
pub(super) fn inflated(mut wire: &[u8]) -> (Vec<u8>, bool) {
    let (mut inflate, mut plain) = (Decompress::new(true), Vec::new());
    loop {
        plain.reserve(64 * 1024);
        let (before, length) = (inflate.total_in(), plain.len());
        let status = inflate.decompress_vec(wire, &mut plain, FlushDecompress::None).expect("a zlib stream");
        wire = &wire[(inflate.total_in() - before) as usize..];
        if status == Status::StreamEnd {
            assert!(wire.is_empty(), "{} bytes behind the end", wire.len());
            return (plain, true);
        }
        if plain.len() == length && wire.is_empty() {
            return (plain, false);
        }
    }
}
