//! Framings, compared with the codecs of tokio-util: nanoseconds per received message.
//!
//! Bodies have 16 to 112 bytes, 64 KiB in total. They arrive at once, in one buffer; or in pieces, each copied to where
//! a read would have put it. An incomplete message at the end of a piece is kept for the next one: by tidemill as the
//! loop does it, by the codecs in their `BytesMut`.
//!
//! The loop reads for all connections into one block. So the unread bytes of a connection are copied in front of each
//! read, and the rest is copied back after it; a codec has a buffer per connection, and reads append to it. With the
//! smallest pieces this costs some nanoseconds per piece; but each piece also costs a system call.
//!
//! The results differ in type. Tidemill returns a slice of the received bytes; `LengthDelimitedCodec` and
//! `AnyDelimiterCodec` a reference-counted slice; `LinesCodec` a `String`, which it checks for UTF-8 and allocates. In
//! the row "line, as a String" tidemill makes a `String` of its slice too.

use std::hint::black_box;
use std::time::Instant;

use bytes::BytesMut;
use tokio_util::codec::{AnyDelimiterCodec, Decoder, LengthDelimitedCodec, LinesCodec};

use crate::framing::{Delimiter, Framing};
use crate::parts::inbox::{Inbox, Input};
use crate::{Contest, Operation, Random, Runner};

const READ: usize = 64 * 1024;
const LONGEST: usize = 8 * 1024;
/// Sizes of pieces: all at once, the contents of a packet, and the pieces of a malicious peer.
const PIECES: [(usize, &str); 3] = [(READ, "whole"), (1_448, "in 1,448 bytes"), (7, "in 7 bytes")];

/// The input for one framing.
pub struct Wire {
    framing: Framing,
    bytes: Vec<u8>,
    messages: usize,
}

pub fn wires() -> Vec<Wire> {
    let named = |name: &str| name.parse().expect("a framing");
    let delimited = |delimiter| Framing::Delimiter(Delimiter::new(delimiter).expect("a delimiter"));
    let names = ["u8", "u16be", "u32le", "u64be", "line", "crlf", "fixed:64", "raw"];
    let mut framings: Vec<Framing> = names.map(named).to_vec();
    framings.extend([delimited(b"\0"), delimited(b"\r\n\r\n")]);
    framings.into_iter().map(wire).collect()
}

fn wire(framing: Framing) -> Wire {
    let mut random = Random(1);
    let (mut bytes, mut messages) = (Vec::new(), 0);
    while bytes.len() < READ {
        let length = match framing {
            Framing::Fixed(_) => 64,
            _ => 16 + random.below(97),
        };
        let body: Vec<u8> = (0..length).map(|_| b'a' + random.below(26) as u8).collect();
        framing.encode(&body, &mut bytes).expect("letters fit every framing");
        messages += 1;
    }
    // Raw: each read is one message.
    let messages = if framing == Framing::Raw { 1 } else { messages };
    Wire { framing, bytes, messages }
}

pub fn contests(wires: &[Wire], smoke: bool) -> Vec<Contest<'_>> {
    let mut all = Vec::new();
    for (piece, how) in PIECES {
        for wire in wires {
            // Raw messages are never incomplete.
            if wire.framing != Framing::Raw || piece == READ {
                all.push(contest(wire, piece, how, smoke));
            }
            if wire.framing.to_string() == "line" {
                all.push(as_strings(wire, piece, how, smoke));
            }
        }
    }
    all
}

fn contest<'a>(wire: &'a Wire, piece: usize, how: &str, smoke: bool) -> Contest<'a> {
    let name = wire.framing.to_string();
    let counted = |width| {
        let mut builder = LengthDelimitedCodec::builder();
        builder.length_field_length(width);
        builder
    };
    let own = tidemill(wire, piece, |body| {
        black_box(body);
    });
    let peers = match name.as_str() {
        "u8" => vec![codec("LengthDelimitedCodec", wire, piece, move || counted(1).new_codec())],
        "u16be" => vec![codec("LengthDelimitedCodec", wire, piece, move || counted(2).new_codec())],
        "u32le" => {
            vec![codec("LengthDelimitedCodec", wire, piece, move || counted(4).little_endian().new_codec())]
        }
        "u64be" => vec![codec("LengthDelimitedCodec", wire, piece, move || counted(8).new_codec())],
        "line" => vec![codec("AnyDelimiterCodec", wire, piece, || delimited(b"\n"))],
        "delimiter:\\x00" => vec![codec("AnyDelimiterCodec", wire, piece, || delimited(b"\0"))],
        // A delimiter of several bytes, strict line ends and a fixed length have no codec to compare with.
        _ => Vec::new(),
    };
    titled(name, own, peers, wire, how, smoke)
}

fn delimited(delimiter: &[u8]) -> AnyDelimiterCodec {
    AnyDelimiterCodec::new_with_max_length(delimiter.to_vec(), Vec::new(), LONGEST)
}

fn as_strings<'a>(wire: &'a Wire, piece: usize, how: &str, smoke: bool) -> Contest<'a> {
    let own = tidemill(wire, piece, |body| {
        black_box(std::str::from_utf8(body).expect("letters").to_owned());
    });
    let peers = vec![codec("LinesCodec", wire, piece, || LinesCodec::new_with_max_length(LONGEST))];
    titled("line, as a String".to_owned(), own, peers, wire, how, smoke)
}

fn titled<'a>(
    name: String,
    own: Runner<'a>,
    peers: Vec<(&'static str, Runner<'a>)>,
    wire: &Wire,
    how: &str,
    smoke: bool,
) -> Contest<'a> {
    let bytes = wire.bytes.len() as f64 / wire.messages as f64;
    // Raw framing reads no byte, so a throughput would mean nothing.
    let bytes = (wire.framing != Framing::Raw).then_some(bytes);
    let operation = Operation { bytes, ..Operation::new(name) };
    let rounds = if smoke { 3 } else { 101 };
    Contest { title: format!("framing, {how}"), operations: vec![operation], own, peers, rounds, repeats: 5 }
}

/// The loop's work for one connection, as `read_and_deliver` and `deliver` in `src/event_loop/read.rs` do it.
struct Receiver {
    block: Vec<u8>,
    inbox: Option<Box<Inbox>>,
}

impl Receiver {
    fn arrive(&mut self, piece: &[u8], framing: &Framing, each: &mut impl FnMut(&[u8])) -> usize {
        let (mut prefix, mut scanned) = (0, 0);
        if let Some(inbox) = &self.inbox {
            (prefix, scanned) = (inbox.unread().len(), inbox.scanned());
            self.block[..prefix].copy_from_slice(inbox.unread());
        }
        self.block[prefix..prefix + piece.len()].copy_from_slice(piece);
        let arrived = &self.block[..prefix + piece.len()];
        let mut input = Input::with_scanned(arrived, scanned);
        let messages = take_all(&mut input, framing, each);
        let (taken, scanned) = input.finish();
        match &arrived[taken..] {
            [] => self.inbox = None,
            rest => self.inbox.get_or_insert_default().replace(rest, scanned),
        }
        messages
    }
}

fn take_all(input: &mut Input<'_>, framing: &Framing, each: &mut impl FnMut(&[u8])) -> usize {
    let mut messages = 0;
    while let Some(body) = framing.next(input).expect("what was encoded") {
        each(body);
        messages += 1;
    }
    messages
}

fn tidemill<'a>(wire: &'a Wire, piece: usize, mut each: impl FnMut(&[u8]) + 'a) -> Runner<'a> {
    Box::new(move || {
        let mut receiver = Receiver { block: vec![0; 4 * READ], inbox: None };
        let begun = Instant::now();
        let messages = if piece >= READ {
            take_all(&mut Input::new(black_box(&wire.bytes)), &wire.framing, &mut each)
        } else {
            let pieces = wire.bytes.chunks(piece);
            pieces.map(|piece| receiver.arrive(piece, &wire.framing, &mut each)).sum()
        };
        told(begun, messages, wire)
    })
}

fn codec<'a, C: Decoder>(
    name: &'static str,
    wire: &'a Wire,
    piece: usize,
    make: impl Fn() -> C + 'a,
) -> (&'static str, Runner<'a>)
where
    C::Error: std::fmt::Debug,
{
    let runner = move || {
        let mut codec = make();
        let mut decode_all = |buffer: &mut BytesMut| {
            let mut messages = 0;
            while let Some(message) = codec.decode(buffer).expect("what was encoded") {
                black_box(&message);
                messages += 1;
            }
            messages
        };
        if piece >= READ {
            let mut buffer = BytesMut::from(&wire.bytes[..]);
            let begun = Instant::now();
            let messages = decode_all(black_box(&mut buffer));
            return told(begun, messages, wire);
        }
        // The initial capacity of `FramedRead`.
        let mut buffer = BytesMut::with_capacity(8 * 1024);
        let begun = Instant::now();
        let messages = wire.bytes.chunks(piece).map(|piece| {
            buffer.extend_from_slice(piece);
            decode_all(&mut buffer)
        });
        let messages = messages.sum();
        told(begun, messages, wire)
    };
    (name, Box::new(runner))
}

fn told(begun: Instant, messages: usize, wire: &Wire) -> Vec<f64> {
    let spent = begun.elapsed();
    assert_eq!(messages, wire.messages, "a message was lost");
    vec![spent.as_secs_f64() * 1e9 / messages as f64]
}
