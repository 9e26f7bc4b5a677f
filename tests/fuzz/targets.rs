//! The fuzz targets. Each takes any bytes, must not panic, and asserts what must hold for all of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tidemill::framing::Framing;
use tidemill::framing::proxy_header::{HeaderVersion, ProxyHeader};
use tidemill::services::{Chat, Echo, Proxy};
use tidemill::testing::{Bench, DialAnswer, Peer, PeerEnd};
use tidemill::text::{Escaped, ForTerminal, Terminal, printable};
use tidemill::{Action, Address, Input, IpRange, Limits, RefuseMode, Rules, SocketLimits};

#[cfg(feature = "cli")]
#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../../src/bin/tidemill/args/values.rs"]
mod values;

/// The first byte, by which a target chooses, and the others.
fn split_first(bytes: &[u8]) -> (usize, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (usize::from(*first), rest))
}

const NAMES: [&str; 16] = [
    "u8",
    "u16be",
    "u16le",
    "u24be",
    "u32be",
    "u32le",
    "u64be",
    "u16be:self",
    "u32le:self",
    "varint28",
    "varint32",
    "varint64",
    "line",
    "crlf",
    "fixed:5",
    "fixed:1",
];

/// All frames of a stream that arrives in pieces, and the error that ended it. What is left of a piece stays in front
/// of the next, as in a connection.
fn frames(framing: &Framing, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Option<String>) {
    let (mut all, mut left) = (Vec::new(), Vec::new());
    for piece in pieces {
        left.extend_from_slice(piece);
        let mut input = Input::new(&left);
        loop {
            match framing.next(&mut input) {
                Ok(Some(frame)) => all.push(frame.to_vec()),
                Ok(None) => break,
                Err(error) => return (all, Some(error.to_string())),
            }
        }
        let rest = input.bytes().to_vec();
        assert!(rest.len() <= framing.inbox_limit(), "more is left than a frame of maximum length");
        left = rest;
    }
    (all, None)
}

/// A stream gives the same frames wherever it is split; no frame is above the limit; what was encoded is decoded.
pub(super) fn framings(bytes: &[u8]) {
    let (choice, stream) = split_first(bytes);
    let (at, stream) = split_first(stream);
    let framing: Framing = NAMES[choice % NAMES.len()].parse().expect("the name of a framing");
    let framing = framing.max(1_000);
    let (whole, error) = frames(&framing, &[stream]);
    assert!(whole.iter().all(|frame| frame.len() <= 1_000));
    let (before, after) = stream.split_at(at.min(stream.len()));
    assert_eq!(frames(&framing, &[before, after]), (whole.clone(), error.clone()), "split at {at}");
    let single: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(frames(&framing, &single), (whole, error), "split everywhere");
    let body = &stream[..stream.len().min(200)];
    let mut wire = Vec::new();
    let encoded = match &framing {
        Framing::LengthPrefix(framing) => framing.encode(body, &mut wire),
        Framing::Varint(framing) => framing.encode(body, &mut wire),
        Framing::Lines(framing) => framing.encode(body, &mut wire),
        Framing::Fixed(framing) => framing.encode(body, &mut wire),
        _ => return,
    };
    if encoded.is_ok() {
        assert_eq!(frames(&framing, &[&wire]), (vec![body.to_vec()], None), "{framing}");
    } else {
        assert!(wire.is_empty(), "an encoding that failed has left bytes");
    }
}

/// A header is found in exactly its own bytes, and is the same when it is encoded and parsed again.
pub(super) fn proxy_header(bytes: &[u8]) {
    let Ok(Some((header, length))) = ProxyHeader::parse(bytes) else { return };
    assert!(length <= bytes.len() && length <= 4_096 + 16);
    assert_eq!(ProxyHeader::parse(&bytes[..length]), Ok(Some((header, length))));
    for shorter in [length - 1, length / 2, 1] {
        assert_eq!(ProxyHeader::parse(&bytes[..shorter]), Ok(None), "{shorter} of {length} bytes");
    }
    let mut wire = Vec::new();
    header.encode(HeaderVersion::V2, &mut wire);
    wire.extend_from_slice(b"and more");
    let (again, length) = ProxyHeader::parse(&wire).expect("its own header").expect("whole");
    assert_eq!((again.source(), length), (header.source(), wire.len() - 8));
}

fn ip(bytes: &[u8]) -> IpAddr {
    let mut all = [0; 16];
    let n = bytes.len().min(16);
    all[..n].copy_from_slice(&bytes[..n]);
    if n <= 4 { Ipv4Addr::new(all[0], all[1], all[2], all[3]).into() } else { Ipv6Addr::from(all).into() }
}

/// A range is the same when it is printed and parsed again, and rules decide as a search from the first to the last.
pub(super) fn ranges(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (mut rules, mut linear, mut asked) = (Rules::default(), Vec::new(), vec![ip(bytes)]);
    for (number, word) in text.split([',', ' ', '\n']).enumerate().take(64) {
        let Ok(range) = word.parse::<IpRange>() else { continue };
        assert_eq!(range.to_string().parse::<IpRange>(), Ok(range), "{word:?}");
        let denies = number % 2 == 0;
        if denies {
            rules.deny(range, RefuseMode::Reset)
        } else {
            rules.allow(range)
        }
        linear.push((range, denies));
        let first = word.split(['/', '-']).next().and_then(|first| first.parse::<IpAddr>().ok());
        asked.extend(first);
    }
    for ip in asked {
        let first = linear.iter().find(|(range, _)| range.contains(ip)).map(|(_, denies)| *denies);
        // For all others, the opposite of the last rule holds.
        let wanted = first.unwrap_or(linear.last().is_some_and(|(_, denies)| !denies));
        assert_eq!(rules.decide(ip) != Action::Allow, wanted, "{ip}");
        if let IpAddr::V4(v4) = ip {
            let mapped = IpAddr::V6(v4.to_ipv6_mapped());
            assert_eq!(rules.decide(mapped) != Action::Allow, wanted, "{mapped} is {ip}");
        }
    }
}

/// An address is the same when it is printed and parsed again.
pub(super) fn addresses(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>().ok(), Some(address), "{text:?}");
    }
}

#[cfg(feature = "cli")]
pub(super) fn sizes_and_durations(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(values::SizeArg(size)) = text.parse() {
        assert_eq!(size.to_string().parse::<values::SizeArg>().map(|size| size.0), Ok(size), "{text:?}");
    }
    if let Ok(values::DurationArg(Some(span))) = text.parse() {
        assert!(!span.is_zero(), "{text:?}: 0 stands for no limit");
    }
    let _ = text.parse::<values::OptionalSizeArg>();
    let _ = text.parse::<values::MinRateArg>();
    let _ = text.parse::<values::Text>();
    let _ = text.parse::<values::LocalAddresses>();
    let _ = (values::upstream(&text).is_ok(), values::keep_alive(&text).is_ok(), values::rate(&text).is_ok());
}

/// Whether a terminal would execute this character.
fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}')
}

/// Nothing that a terminal executes is left, and a stream is shown the same wherever it is split.
pub(super) fn text(bytes: &[u8]) {
    let escaped = Escaped(bytes).to_string();
    assert!(!escaped.contains(is_control), "{escaped:?}");
    assert!(escaped.len() <= 8 * bytes.len());
    let line = printable(bytes);
    assert!(!line.contains(|c| is_control(c) && c != '\t'), "{line:?}");
    let shown = ForTerminal(bytes).to_string();
    let executes = |c| is_control(c) && !matches!(c, '\t' | '\n' | '\r');
    assert!(!shown.contains(executes), "{shown:?}");
    let in_pieces = |size: usize| {
        let (mut terminal, mut out) = (Terminal::default(), String::new());
        bytes.chunks(size).for_each(|piece| terminal.feed(piece, &mut out));
        terminal.finish(&mut out);
        out
    };
    let whole = in_pieces(bytes.len().max(1));
    assert_eq!(in_pieces(1), whole);
    assert!(!whole.contains(executes), "{whole:?}");
}

/// Three members say whatever the bytes say. Each gets whole lines without controls, and the server lives on.
pub(super) fn chat(bytes: &[u8]) {
    let mut bench = Bench::new_with(Limits { memory: 1024 * 1024, ..Limits::default() });
    bench.serve(Chat::new());
    let members = [0; 3].map(|_| bench.connect());
    for piece in bytes.chunks(64) {
        let (member, text) = split_first(piece);
        bench.say(members[member % 3], text);
    }
    for member in members {
        let received = bench.heard_bytes(member);
        let text = String::from_utf8(received).expect("the chat sends text");
        assert!(!text.contains(|c| is_control(c) && !matches!(c, '\t' | '\n' | '\r')), "{text:?}");
    }
    let late = bench.connect();
    assert!(bench.heard_bytes(late).len() > 1, "a later member is greeted");
}

/// What one peer says at most. Each byte may take some turns of its own, and a bench gives up after 100,000.
const SAID_MAX: usize = 10_000;

/// One step of peers, as two bytes decide; `true` when the peer has gone.
fn act(bench: &mut Bench, peer: Peer, choice: usize, n: usize, said: &mut Vec<u8>) -> bool {
    match choice % 8 {
        0..=2 => {
            let length = (n * 40).min(SAID_MAX - said.len());
            let piece: Vec<u8> = (0..length).map(|i| (said.len() + i) as u8).collect();
            bench.say(peer, &piece);
            said.extend(piece);
        }
        3 => bench.stop_reading(peer),
        4 => bench.read_at_most(peer, n * 100),
        5 => bench.read_again(peer),
        6 => bench.split_every(1 + n * 8),
        _ => {
            bench.end(peer);
            return true;
        }
    }
    false
}

/// A peer gets back what it has said, in order, once and whole, whatever it does meanwhile.
pub(super) fn echo_tape(bytes: &[u8]) {
    let socket = SocketLimits { high_water: 3_000, low_water: 500, ..SocketLimits::default() };
    let limits = Limits { read_budget: 2_000, write_budget: 1_500, socket, ..Limits::default() };
    let (seed, tape) = split_first(bytes);
    let mut bench =
        if seed < 128 { Bench::new_with(limits) } else { Bench::seeded_with(seed as u64, limits) };
    bench.serve(Echo::raw());
    let (peer, mut said) = (bench.connect(), Vec::new());
    for step in tape.chunks(2).take(200) {
        let (choice, n) = split_first(step);
        if act(&mut bench, peer, choice, n.first().copied().unwrap_or(0).into(), &mut said) {
            break;
        }
    }
    bench.end(peer);
    bench.read_again(peer);
    assert!(bench.heard_bytes(peer) == said, "{} bytes were said", said.len());
    assert_eq!(bench.ended(peer), Some(PeerEnd::Fin));
}

/// Two peers talk through a proxy: each gets what the other has said, in order, once and whole.
pub(super) fn proxy_tape(bytes: &[u8]) {
    let (seed, tape) = split_first(bytes);
    let limits = Limits { read_budget: 2_000, ..Limits::default() };
    let mut bench =
        if seed < 128 { Bench::new_with(limits) } else { Bench::seeded_with(seed as u64, limits) };
    bench.set_dial("10.0.0.8:80", DialAnswer::Accept);
    bench.serve(Proxy::to(vec!["10.0.0.8:80".parse().expect("an upstream")]));
    let client = bench.connect();
    let upstream = bench.upstream("10.0.0.8:80");
    let (peers, mut said, mut ended) = ([client, upstream], [Vec::new(), Vec::new()], [false; 2]);
    for step in tape.chunks(2).take(200) {
        let (choice, n) = split_first(step);
        let side = choice / 128;
        let n = n.first().copied().unwrap_or(0).into();
        if !ended[side] {
            ended[side] = act(&mut bench, peers[side], choice, n, &mut said[side]);
        }
    }
    peers.iter().for_each(|&peer| bench.end(peer));
    for _ in 0..2 {
        peers.iter().for_each(|&peer| bench.read_again(peer));
    }
    for (side, &peer) in peers.iter().enumerate() {
        let other = &said[1 - side];
        assert!(bench.heard_bytes(peer) == *other, "{} bytes were said to {side}", other.len());
    }
}

/// Bytes of a client that speaks no TLS, or not to the end: the connection is closed, and nothing is delivered.
#[cfg(feature = "tls")]
pub(super) fn tls_bytes(bytes: &[u8]) {
    use tidemill::tls::{CertifiedKey, Server, ServerOptions};
    use tidemill::{FilterConfig, ListenOptions};

    thread_local! {
        static FILTER: FilterConfig = {
            let made = rcgen::generate_simple_self_signed(["a.example".to_string()]).expect("a certificate");
            let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
            let identity = CertifiedKey::from_pem(pem.as_bytes(), key.as_bytes()).expect("a pair");
            let options = ServerOptions { certificates: vec![identity], ..ServerOptions::default() };
            Server::new(options).expect("a server").filter_config()
        };
    }
    let mut bench = Bench::new();
    let echo = bench.add(Echo::raw());
    let options = ListenOptions { filter: Some(FILTER.with(Clone::clone)), ..ListenOptions::default() };
    bench.listen_with("10.0.0.2:443", echo, &options).expect("a listener");
    let peer = bench.connect();
    for piece in bytes.chunks(700) {
        bench.say(peer, piece);
    }
    bench.end(peer);
    assert!(bench.closed(peer).is_some(), "a client that ends in its handshake is closed");
    assert!(bench.stats().handshakes == 0);
}
