//! Scenarios: what peers do, the kernel's answers and limits, as lines of text.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::SeededBug;
use super::kernel::DialAnswer;
use super::scenario_parse as parse;
use crate::base::address::Address;
use crate::config::limits::{Limits, SocketLimits};
use crate::framing::Framing;
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
/// | `serve echo` (`quit`, `chat`, `frames`, `starttls`, `worker`, `orders`, `proxy db:5432`) | the service |
/// | `serve frames until \|\|` | frames that end otherwise than with the line |
/// | `limit NAME VALUE` | a limit by its option's name, such as `idle 5s`, `high-water 1KiB`, `connections 2` |
/// | `overflow wait` | beyond the limit peers wait in the backlog; without this line they are refused |
/// | `behind the filter` | all is behind the filter of `starttls`, from the first byte on |
/// | `seed 7` | the kernel makes all the trouble that it may make, as this seed decides |
/// | `split 1` | at most so many bytes arrive, or leave, in one piece |
///
/// | act | |
/// | --- | --- |
/// | `ann connects`, `crowd connects 300 times` | a peer, or several of one name, which is used from here on |
/// | `db answers 10.0.0.7:5432` | a peer that plays the upstream of a dial |
/// | `ann says "hello\n"`, `ann says 64KiB`, `ann says "x\n" 9 times` | it sends text, or so many bytes |
/// | `ann ends`, `ann resets` | it sends FIN, or a reset |
/// | `ann is cut off` | it sends FIN without the announcement of the end that the filter makes |
/// | `ann stops reading`, `ann reads 10B`, `ann reads again` | its window |
/// | `ann starts the filter` | it encrypts from here on |
/// | `stale event for ann` | the kernel reports the token of a connection that has ended |
/// | `descriptors left 0`, `exhausted` (the spare one too), `unlimited` | what the process may open |
/// | `name db has 10.0.0.7 and 10.0.0.8`, `dial 10.0.0.7:5432 hangs` (`is accepted`, `is refused`) | the network |
/// | `a thread posts 9 for ann` | posts, each of which sends her a line |
/// | `a thread posts for ann in between` | a post that comes while the loop takes those of the same line |
/// | `advance 5s`, `shutdown 5s` | the clock; the end |
///
/// `serve orders` does what its peers' lines say, within their callback: `pause ann` (`resume`, `finish`, `close`,
/// `abort`), `send ann 64KiB`, `pipe ann bob`, `unpipe ann`, `rate ann 1KiB`, `group 1KiB ann bob`, `group rate 2KiB`,
/// `dial 10.0.0.7:80`, `stop`, `after 5s ORDER`, `finally ORDER` (when its own connection has ended). It echoes other
/// lines.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    pub(super) title: String,
    pub(super) about: String,
    /// The lines before the acts, as they stand.
    pub(super) setup: String,
    pub(super) serve: Serve,
    pub(super) limits: Limits,
    /// The limits of the service are its own, with these lines applied.
    /// Whether peers beyond the limit wait.
    pub(super) waits: bool,
    /// Whether all is behind the filter.
    pub(super) filtered: bool,
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
    Frames(Framing),
    StartTls,
    Worker,
    Orders,
    Proxy(Vec<Address>),
}

/// One thing that a peer, the kernel or the clock does.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Act {
    /// So many peers.
    Connect(String, usize),
    Answer(String, String),
    Say(String, Vec<u8>),
    End(String),
    Reset(String),
    CutOff(String),
    /// It reads so many bytes more.
    Read(String, usize),
    StartFilter(String),
    StaleEvent(String),
    Descriptors(Option<usize>),
    /// Other processes have taken all, the spare one too.
    NoDescriptors,
    Name(String, Vec<IpAddr>),
    Dial(String, DialAnswer),
    Post(String, usize),
    /// A post between the two steps of the loop's taking posts.
    PostInBetween(String),
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

/// The longest text: enough for a lesson, and bounded in memory.
const TEXT_MAX: usize = 16 * 1024;

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

    /// The bugs that show in it, in the order of its comment `Shows: …`.
    pub fn bugs(&self) -> impl Iterator<Item = SeededBug> {
        let named = self.about.lines().filter_map(|line| line.strip_prefix("Shows: "));
        named.flat_map(|names| names.trim_end_matches('.').split(", ")).filter_map(SeededBug::named)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        if matches!(words[0], "serve" | "limit" | "overflow" | "behind" | "seed" | "split") {
            self.setup += &format!("{text}\n");
        }
        match words.as_slice() {
            ["serve", what @ ..] => self.serve = parse::serve(what)?,
            ["limit", name, value] => parse::limit(&mut self.limits, name, value)?,
            ["overflow", "wait"] => self.waits = true,
            ["behind", "the", "filter"] => self.filtered = true,
            ["seed", number] => self.seed = Some(parse::parse(number, "a number")?),
            ["split", bytes] => self.split = Some(parse::size(bytes)?.max(1)),
            ["and", ..] => {
                let act = parse::act(text.trim_start_matches("and").trim_start())?;
                let line =
                    self.lines.last_mut().ok_or("`and` continues a line of acts; there is none before")?;
                line.text += &format!("; {text}");
                line.acts.push(act);
            }
            _ => self.lines.push(Line { text: text.to_string(), acts: vec![parse::act(text)?] }),
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
                Act::Connect(name, _) | Act::Answer(name, _) => known.push(name),
                Act::Say(name, _)
                | Act::End(name)
                | Act::Reset(name)
                | Act::CutOff(name)
                | Act::Post(name, _)
                | Act::PostInBetween(name)
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
            waits: false,
            filtered: false,
            seed: None,
            split: None,
            lines: Vec::new(),
        };
        // The service's own limits hold before the lines that change them.
        let served = text.lines().map(str::trim).find_map(|line| line.strip_prefix("serve "));
        if let Some(what) = served {
            let serve = parse::serve(&what.split_whitespace().collect::<Vec<_>>()).unwrap_or(Serve::Echo);
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
            Serve::Frames(framing) => Frames::new(framing.clone()).limits(),
            Serve::StartTls | Serve::Worker | Serve::Orders => SocketLimits::default(),
            Serve::Proxy(to) => Proxy::to(to.clone()).limits(),
        }
    }
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
        assert!(told("advance 101y").contains("not a time"));
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
