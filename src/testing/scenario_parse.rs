//! What the lines of a scenario can say.

use std::str::FromStr;
use std::time::Duration;

use super::kernel::DialAnswer;
use super::scenario::{Act, Serve};
use crate::base::address::Address;
use crate::config::limits::Limits;
use crate::framing::{Delimiter, Framing};

/// So many bytes in one act, and so many peers or repetitions: enough for a lesson, and bounded in memory.
const SAY_MAX: usize = 4 * 1024 * 1024;
const COUNT_MAX: usize = 100_000;

const ACTS: &str = "connects, answers, says, ends, resets, is cut off, stops reading, reads, starts the filter; \
                    stale event for, a thread posts, descriptors, name, dial, advance, shutdown";
const LIMITS: &str = "connections, accepts-per-turn, memory, read-budget, carried-over-budget, write-budget, splices, \
                      handshakes, posts, posts-per-turn, idle, connect, half-closed, lifetime, message-timeout, \
                      high-water, low-water, queue, message, rate";

pub(super) fn limit(all: &mut Limits, name: &str, value: &str) -> Result<(), String> {
    let of_socket = &mut all.socket;
    match name {
        "connections" => all.connections = parse(value, "a number")?,
        "accepts-per-turn" => all.accepts_per_turn = parse(value, "a number")?,
        "memory" => all.memory = size(value)?,
        "read-budget" => all.read_budget = size(value)?,
        "carried-over-budget" => all.carried_over_budget = size(value)?,
        "write-budget" => all.write_budget = size(value)?,
        "splices" => all.splices = parse(value, "a number")?,
        "handshakes" => all.handshakes = parse(value, "a number")?,
        "posts" => all.posts = parse(value, "a number")?,
        "posts-per-turn" => all.posts_per_turn = parse(value, "a number")?,
        "idle" => of_socket.idle = Some(span(value)?),
        "connect" => of_socket.connect = Some(span(value)?),
        "half-closed" => of_socket.half_closed = Some(span(value)?),
        "lifetime" => of_socket.lifetime = Some(span(value)?),
        "message-timeout" => of_socket.message_timeout = Some(span(value)?),
        "high-water" => of_socket.high_water = size(value)?,
        "low-water" => of_socket.low_water = size(value)?,
        "queue" => of_socket.queue = size(value)?,
        "message" => of_socket.message = size(value)?,
        "rate" => of_socket.rate = Some(size(value)?),
        _ => return Err(format!("there is no limit {name:?} here: {LIMITS}")),
    }
    Ok(())
}

pub(super) fn serve(words: &[&str]) -> Result<Serve, String> {
    match words {
        ["echo"] => Ok(Serve::Echo),
        ["quit"] => Ok(Serve::Quit),
        ["chat"] => Ok(Serve::Chat),
        // Lines, because they can be typed.
        ["frames"] => parse("line", "a framing").map(Serve::Frames),
        ["frames", "until", delimiter] => {
            let delimiter = Delimiter::new(delimiter.as_bytes());
            delimiter.map(|it| Serve::Frames(Framing::Delimiter(it))).ok_or("an empty delimiter".to_string())
        }
        ["starttls"] => Ok(Serve::StartTls),
        ["worker"] => Ok(Serve::Worker),
        ["orders"] => Ok(Serve::Orders),
        ["proxy", to @ ..] if !to.is_empty() => {
            to.iter().map(|to| parse(to, "an address")).collect::<Result<_, _>>().map(Serve::Proxy)
        }
        _ => {
            Err("the service is echo, quit, chat, frames, starttls, worker, orders, or proxy with an address"
                .to_string())
        }
    }
}

pub(super) fn act(text: &str) -> Result<Act, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let name = |name: &str| match name.chars().all(char::is_alphanumeric) {
        true => Ok(name.to_string()),
        false => Err(format!("{name:?} is no name: letters and digits")),
    };
    Ok(match words.as_slice() {
        ["advance", time] => Act::Advance(span(time)?),
        ["shutdown", time] => Act::Shutdown(span(time)?),
        ["descriptors", "exhausted"] => Act::NoDescriptors,
        ["descriptors", "unlimited"] => Act::Descriptors(None),
        ["descriptors", "left", n] => Act::Descriptors(Some(parse(n, "a number")?)),
        ["stale", "event", "for", who] => Act::StaleEvent(name(who)?),
        ["name", host, "has", all @ ..] => {
            let ips = all.iter().filter(|word| **word != "and").map(|ip| parse(ip, "an IP address"));
            Act::Name((*host).to_string(), ips.collect::<Result<_, _>>()?)
        }
        ["dial", to, "is", "accepted"] => Act::Dial(address(to)?, DialAnswer::Accept),
        ["dial", to, "is", "refused"] => Act::Dial(address(to)?, DialAnswer::Refuse),
        ["dial", to, "hangs"] => Act::Dial(address(to)?, DialAnswer::Hang),
        ["a", "thread", "posts", n, "for", who] => Act::Post(name(who)?, count(n)?),
        ["a", "thread", "posts", "for", who, "in", "between"] => Act::PostInBetween(name(who)?),
        [who, "connects"] => Act::Connect(name(who)?, 1),
        [who, "connects", n, "times"] => Act::Connect(name(who)?, count(n)?),
        [who, "answers", to] => Act::Answer(name(who)?, address(to)?),
        [who, "says", ..] => Act::Say(name(who)?, said(text)?),
        [who, "ends"] => Act::End(name(who)?),
        [who, "resets"] => Act::Reset(name(who)?),
        [who, "is", "cut", "off"] => Act::CutOff(name(who)?),
        [who, "stops", "reading"] => Act::Read(name(who)?, 0),
        [who, "reads", "again"] => Act::Read(name(who)?, usize::MAX),
        [who, "reads", n] => Act::Read(name(who)?, size(n)?),
        [who, "starts", "the", "filter"] => Act::StartFilter(name(who)?),
        _ => return Err(format!("{text:?} is no act: {ACTS}")),
    })
}

/// What a peer says: a text in quotation marks, or a number of bytes.
fn said(line: &str) -> Result<Vec<u8>, String> {
    let what = line.split_once("says").map_or("", |(_, what)| what.trim());
    let repeated = what.strip_suffix(" times").and_then(|what| what.rsplit_once(' '));
    if let Some((what, n)) = repeated {
        let once = said(&format!("says {what}"))?;
        let n = count(n)?;
        return match n * once.len() <= SAY_MAX {
            true => Ok(once.repeat(n)),
            false => Err(format!("{} bytes are more than {SAY_MAX}", n * once.len())),
        };
    }
    let Some(quoted) = what.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        let n = size(what)
            .map_err(|_| format!("{what}: a text in \"quotation marks\", or a size such as 64KiB"))?;
        return match n <= SAY_MAX {
            true => Ok((b'a'..=b'z').cycle().take(n).collect()),
            false => Err(format!("{n} bytes are more than {SAY_MAX}")),
        };
    };
    let (mut bytes, mut rest) = (Vec::new(), quoted.chars());
    while let Some(c) = rest.next() {
        let c = match c {
            '\\' => match rest.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some(other @ ('\\' | '"')) => other,
                _ => return Err("after \\ comes n, r, t, \\ or \"".to_string()),
            },
            c => c,
        };
        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Ok(bytes)
}

/// So many peers, posts or repetitions.
fn count(text: &str) -> Result<usize, String> {
    let n = parse(text, "a number").ok().filter(|n| (1..=COUNT_MAX).contains(n));
    n.ok_or_else(|| format!("{text:?} is not a number from 1 to {COUNT_MAX}"))
}

pub(super) fn parse<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not {what}"))
}

/// An address with a port, no name.
fn address(text: &str) -> Result<String, String> {
    match text.parse() {
        Ok(Address::Inet(address)) => Ok(address.to_string()),
        _ => Err(format!("{text:?} is not an address such as 10.0.0.7:5432")),
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

pub(super) fn size(text: &str) -> Result<usize, String> {
    let scale = |unit| match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1_024),
        "MiB" => Some(1_024 * 1_024),
        _ => None,
    };
    let bytes = split_unit(text).and_then(|(n, unit)| n.checked_mul(scale(unit)?));
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or_else(|| format!("{text:?} is not a size such as 512B, 64KiB or 1MiB"))
}

pub(super) fn span(text: &str) -> Result<Duration, String> {
    let scale = |unit| match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "y" => Some(365 * 24 * 3_600_000),
        _ => None,
    };
    let millis = split_unit(text).and_then(|(n, unit)| n.checked_mul(scale(unit)?));
    // A longer time is a mistake.
    let millis = millis.filter(|&millis| millis <= 100 * 365 * 24 * 3_600_000);
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a time such as 20ms, 5s, 1m, 2h or 30y"))
}
