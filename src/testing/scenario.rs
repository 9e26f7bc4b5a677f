//! Scenarios: what peers do, the kernel's answers and limits, as lines of text.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::kernel::DialAnswer;
use crate::base::address::Address;
use crate::config::limits::{Limits, SocketLimits};
use crate::services::{Chat, Echo, Frames, Proxy};

/// A small play for a loop on a simulated kernel: a service, and what its peers do, line by line.
///
/// ```text
///     # Echo: one message there and back          the title; further lines of this kind explain it
///     serve echo                                  what comes before the first act sets it up
///     limit connections 2
///
///     ann connects                                an act; then the loop turns until nothing is left to do
///     ann says "hello"
///     and bob connects                            `and`: before the loop turns
///     advance 5s
/// ```
///
/// | set up | |
/// | --- | --- |
/// | `serve echo` (`quit`, `chat`, `frames`, `starttls`, `worker`, `proxy db:5432`) | the service |
/// | `limit NAME VALUE` | a limit by its option's name, such as `idle 5s`, `high-water 1KiB`, `connections 2` |
/// | `seed 7` | the kernel makes all the trouble that it may make, as this seed decides |
/// | `split 1` | at most so many bytes arrive, or leave, in one piece |
///
/// | act | |
/// | --- | --- |
/// | `ann connects` | a peer; its name is used from here on |
/// | `db answers 10.0.0.7:5432` | a peer that plays the upstream of a dial |
/// | `ann says "hello\n"`, `ann says 64KiB` | it sends text, or so many bytes |
/// | `ann ends`, `ann resets` | it sends FIN, or a reset |
/// | `ann stops reading`, `ann reads 10B`, `ann reads again` | its window |
/// | `ann starts the filter` | it encrypts from here on |
/// | `stale event for ann` | the kernel reports the token of a connection that has ended |
/// | `descriptors left 0`, `exhausted` (the spare one too), `unlimited` | what the process may open |
/// | `name db has 10.0.0.7 and 10.0.0.8`, `dial 10.0.0.7:5432 hangs` (`is accepted`, `is refused`) | the network |
/// | `advance 5s`, `shutdown 5s` | the clock; the end |
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    pub(super) title: String,
    pub(super) about: String,
    /// The lines before the acts, as they stand.
    pub(super) setup: String,
    pub(super) serve: Serve,
    pub(super) limits: Limits,
    /// The limits of the service are its own, with these lines applied.
    pub(super) seed: Option<u64>,
    pub(super) split: Option<usize>,
    pub(super) lines: Vec<Line>,
}

/// A line of acts that happen before the loop turns.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) acts: Vec<Act>,
}

/// The service of a scenario.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Serve {
    Echo,
    Quit,
    Chat,
    Frames,
    StartTls,
    Worker,
    Proxy(Vec<Address>),
}

/// One thing that a peer, the kernel or the clock does.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Act {
    Connect(String),
    Answer(String, String),
    Say(String, Vec<u8>),
    End(String),
    Reset(String),
    /// It reads so many bytes more.
    Read(String, usize),
    StartFilter(String),
    StaleEvent(String),
    Descriptors(Option<usize>),
    /// Other processes have taken all, the spare one too.
    NoDescriptors,
    Name(String, Vec<IpAddr>),
    Dial(String, DialAnswer),
    Advance(Duration),
    Shutdown(Duration),
}

/// What is wrong with the text of a scenario, and in which line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScenarioError {
    line: usize,
    problem: String,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl std::error::Error for ScenarioError {}

/// The longest text, so many acts, and so many bytes in one of them: enough for a lesson, and bounded in memory.
const TEXT_MAX: usize = 16 * 1024;
const SAY_MAX: usize = 4 * 1024 * 1024;

impl Scenario {
    /// The title: the first comment.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What it shows: the other comments before the first act.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// The acts, a line each.
    pub fn acts(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|line| line.text.as_str())
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        if matches!(words[0], "serve" | "limit" | "seed" | "split") {
            self.setup += &format!("{text}\n");
        }
        match words.as_slice() {
            ["serve", what @ ..] => self.serve = serve(what)?,
            ["limit", name, value] => self.limit(name, value)?,
            ["seed", number] => self.seed = Some(parse(number, "a number")?),
            ["split", bytes] => self.split = Some(size(bytes)?.max(1)),
            ["and", ..] => {
                let act = act(text.trim_start_matches("and").trim_start())?;
                let line =
                    self.lines.last_mut().ok_or("`and` continues a line of acts; there is none before")?;
                line.text += &format!("; {text}");
                line.acts.push(act);
            }
            _ => self.lines.push(Line { text: text.to_string(), acts: vec![act(text)?] }),
        }
        Ok(())
    }

    fn limit(&mut self, name: &str, value: &str) -> Result<(), String> {
        let all = &mut self.limits;
        let of_socket = &mut all.socket;
        match name {
            "connections" => all.connections = parse(value, "a number")?,
            "accepts-per-turn" => all.accepts_per_turn = parse(value, "a number")?,
            "memory" => all.memory = size(value)?,
            "read-budget" => all.read_budget = size(value)?,
            "carried-over-budget" => all.carried_over_budget = size(value)?,
            "write-budget" => all.write_budget = size(value)?,
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

    /// The text from which [`FromStr`] makes the same scenario, without the comments.
    pub fn script(&self) -> String {
        let mut text = self.setup.clone();
        for act in self.acts() {
            text += &format!("{}\n", act.replace("; and ", "\nand "));
        }
        text
    }

    /// The page that plays the scenario, from the root of the repository of this crate.
    pub fn page_link(&self) -> String {
        let mut link = "docs/page/index.html#script=".to_string();
        for byte in self.script().bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => link.push(char::from(byte)),
                other => link += &format!("%{other:02X}"),
            }
        }
        link
    }

    /// The names of peers are known before they are used.
    pub(super) fn check_names(&self) -> Result<(), String> {
        let mut known: Vec<&str> = Vec::new();
        for act in self.lines.iter().flat_map(|line| &line.acts) {
            match act {
                Act::Connect(name) | Act::Answer(name, _) => known.push(name),
                Act::Say(name, _)
                | Act::End(name)
                | Act::Reset(name)
                | Act::Read(name, _)
                | Act::StartFilter(name)
                | Act::StaleEvent(name)
                    if !known.contains(&name.as_str()) =>
                {
                    return Err(format!("{name} is not there yet: write `{name} connects` before"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

const LIMITS: &str = "connections, accepts-per-turn, memory, read-budget, carried-over-budget, write-budget, idle, \
                      connect, half-closed, lifetime, message-timeout, high-water, low-water, queue, message, rate";
const ACTS: &str = "connects, answers, says, ends, resets, stops reading, reads, starts the filter; stale event for, \
                    descriptors, name, dial, advance, shutdown";

impl FromStr for Scenario {
    type Err = ScenarioError;

    fn from_str(text: &str) -> Result<Scenario, ScenarioError> {
        let error = |line: usize, problem: String| ScenarioError { line, problem };
        if text.len() > TEXT_MAX {
            return Err(error(1, format!("the text has {} bytes, at most {TEXT_MAX}", text.len())));
        }
        let mut scenario = Scenario {
            title: String::new(),
            about: String::new(),
            setup: String::new(),
            serve: Serve::Echo,
            limits: Limits { connections: 8, ..Limits::default() },
            seed: None,
            split: None,
            lines: Vec::new(),
        };
        // The service's own limits hold before the lines that change them.
        let served = text.lines().map(str::trim).find_map(|line| line.strip_prefix("serve "));
        if let Some(what) = served {
            let serve = serve(&what.split_whitespace().collect::<Vec<_>>()).unwrap_or(Serve::Echo);
            scenario.limits.socket = serve.limits();
        }
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            match line.strip_prefix('#').map(str::trim) {
                Some(title) if scenario.title.is_empty() => scenario.title = title.to_string(),
                Some(about) => scenario.about += &format!("{about}\n"),
                None if line.is_empty() => {}
                None => scenario.add(line).map_err(|problem| error(number, problem))?,
            }
        }
        scenario.check_names().map_err(|problem| error(text.lines().count().max(1), problem))?;
        Ok(scenario)
    }
}

impl Serve {
    fn limits(&self) -> SocketLimits {
        match self {
            Serve::Echo => Echo::raw().limits(),
            Serve::Quit => Echo::new().limits(),
            Serve::Chat => Chat::new().limits(),
            Serve::Frames => Frames::new(framing()).limits(),
            Serve::StartTls | Serve::Worker => SocketLimits::default(),
            Serve::Proxy(to) => Proxy::to(to.clone()).limits(),
        }
    }
}

/// The framing of `serve frames`: lines, because they can be typed.
pub(super) fn framing() -> crate::framing::Framing {
    "line".parse().expect("a framing of the crate")
}

fn serve(words: &[&str]) -> Result<Serve, String> {
    match words {
        ["echo"] => Ok(Serve::Echo),
        ["quit"] => Ok(Serve::Quit),
        ["chat"] => Ok(Serve::Chat),
        ["frames"] => Ok(Serve::Frames),
        ["starttls"] => Ok(Serve::StartTls),
        ["worker"] => Ok(Serve::Worker),
        ["proxy", to @ ..] if !to.is_empty() => {
            to.iter().map(|to| parse(to, "an address")).collect::<Result<_, _>>().map(Serve::Proxy)
        }
        _ => {
            Err("the service is echo, quit, chat, frames, starttls, worker, or proxy with an address"
                .to_string())
        }
    }
}

fn act(text: &str) -> Result<Act, String> {
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
        [who, "connects"] => Act::Connect(name(who)?),
        [who, "answers", to] => Act::Answer(name(who)?, address(to)?),
        [who, "says", ..] => Act::Say(name(who)?, said(text)?),
        [who, "ends"] => Act::End(name(who)?),
        [who, "resets"] => Act::Reset(name(who)?),
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

fn parse<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
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

fn size(text: &str) -> Result<usize, String> {
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

fn span(text: &str) -> Result<Duration, String> {
    let scale = |unit| match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let millis = split_unit(text).and_then(|(n, unit)| n.checked_mul(scale(unit)?));
    // A longer time is a mistake, and the deadlines on the way would be many.
    let millis = millis.filter(|&millis| millis <= 24 * 3_600_000);
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a time such as 20ms, 5s, 1m or 2h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_can_stand_there() {
        let told = |text: &str| text.parse::<Scenario>().expect_err(text).to_string();
        assert!(told("serve echo\nann jumps").starts_with("line 2: \"ann jumps\" is no act: connects,"));
        assert!(told("serve tea").contains("the service is echo, quit,"));
        assert!(told("ann says \"x\"").contains("ann is not there yet"));
        assert!(told("ann connects\nann says x").contains("a size such as 64KiB"));
        assert!(told("ann connects\nann says 5MiB").contains("more than"));
        assert!(told("limit tea 5").contains("there is no limit \"tea\""));
        assert!(told("limit idle 5").contains("a time such as 20ms"));
        assert!(told("advance 25h").contains("not a time"));
        assert!(told("and ann connects").contains("none before"));
        assert!(told("dial db:80 hangs").contains("not an address"));
        assert!(told(&"#".repeat(TEXT_MAX + 1)).contains("bytes, at most"));
    }

    #[test]
    fn a_text_is_read_with_its_escapes_sizes_and_groups() {
        let text =
            "# One\n# two\nserve quit\nlimit idle 5s\nann connects\nand bob connects\nann says \"a\\n\\\"b\"";
        let scenario: Scenario = text.parse().expect("a scenario");
        assert_eq!((scenario.title(), scenario.about()), ("One", "two\n"));
        assert_eq!(scenario.limits.socket.idle, Some(Duration::from_secs(5)));
        assert_eq!(scenario.lines.len(), 2);
        assert_eq!(scenario.lines[0].acts.len(), 2);
        assert_eq!(scenario.script().parse::<Scenario>().expect("its script").lines, scenario.lines);
        assert!(
            scenario.page_link().ends_with("ann%20says%20%22a%5Cn%5C%22b%22%0A"),
            "{}",
            scenario.page_link()
        );
        assert_eq!(scenario.lines[1].acts, [Act::Say("ann".to_string(), b"a\n\"b".to_vec())]);
    }
}
