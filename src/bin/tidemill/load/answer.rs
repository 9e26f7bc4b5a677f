//! Where an answer ends, and whether it is the expected one.

use std::rc::Rc;

use regex::bytes::Regex;
use tidemill::Input;
use tidemill::framing::Framing;

use super::protocol;
use crate::args::load::{Expect, LoadArgs, Protocol};

/// A longer answer without an end is taken for a wrong one. A bound is needed because unfinished answers are buffered.
pub const ANSWER_MAX: usize = 16 << 20;

const ENDLESS: &str =
    "--send needs to know where an answer ends: give --expect, --until, --framing or --protocol";

/// How an answer is recognised.
#[derive(Clone)]
pub enum Answer {
    /// Every byte of the message comes back.
    Echo,
    /// These bytes, with nothing between two answers.
    Bytes(Rc<[u8]>),
    /// The answer ends where the expression's first match ends.
    Matches(Rc<Regex>),
    /// An end that does not depend on the expectation, and what must be found before it.
    Delimited(End, Option<Check>),
}

/// Where an answer ends.
#[derive(Clone)]
pub enum End {
    Until(Rc<[u8]>),
    Frame(Framing),
    Protocol(Protocol),
}

/// What a delimited answer must hold.
#[derive(Clone)]
pub enum Check {
    Is(Rc<[u8]>),
    Contains(Rc<Regex>),
}

/// One complete answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Right,
    /// Not what was expected, in words; the stream goes on behind it.
    Wrong(String),
}

impl Answer {
    /// The answer that these options describe.
    pub fn new(options: &LoadArgs) -> Result<Answer, String> {
        let end = match (&options.until, &options.framing, options.protocol) {
            (Some(until), _, _) => Some(End::Until(Rc::from(until.0.as_slice()))),
            (None, Some(framing), _) => Some(End::Frame(framing.clone())),
            (None, None, Some(protocol)) => Some(End::Protocol(protocol)),
            (None, None, None) => None,
        };
        let Some(end) = end else {
            if options.greeting {
                return Err(
                    "--greeting needs to know where an answer ends: give --until, --framing or --protocol"
                        .into(),
                );
            }
            return match &options.expect {
                Some(Expect::Bytes(bytes)) => Ok(Answer::Bytes(Rc::from(bytes.as_slice()))),
                Some(Expect::Matches(regex)) => Ok(Answer::Matches(Rc::new(regex.clone()))),
                None => Err(ENDLESS.to_string()),
            };
        };
        let check = options.expect.as_ref().map(|expect| match expect {
            Expect::Bytes(bytes) => Check::Is(Rc::from(bytes.as_slice())),
            Expect::Matches(regex) => Check::Contains(Rc::new(regex.clone())),
        });
        Ok(Answer::Delimited(end, check))
    }

    /// Takes the next complete answer from `input`, which holds the bytes that have come so far. None: it is not
    /// complete. An error is one that leaves no way to find the next answer: the connection is of no more use.
    pub fn next(&self, input: &mut Input<'_>) -> Result<Option<Received>, String> {
        match self {
            Answer::Echo => Err("an echo has no end of its own".to_string()),
            Answer::Bytes(expected) => {
                let got = &input.bytes()[..input.len().min(expected.len())];
                if got != &expected[..got.len()] {
                    return Err(format!("{} where {} was expected", show(input.bytes()), show(expected)));
                }
                let complete = got.len() == expected.len();
                Ok(complete.then(|| {
                    input.take(expected.len());
                    Received::Right
                }))
            }
            Answer::Matches(regex) => match regex.find(input.bytes()) {
                Some(found) if found.end() > 0 => {
                    input.take(found.end());
                    Ok(Some(Received::Right))
                }
                _ => incomplete(input, &format!("does not match /{regex}/")),
            },
            Answer::Delimited(end, check) => {
                let Some((body, fine)) = end.next(input)? else { return incomplete(input, "has no end") };
                Ok(Some(judge(body, fine, check.as_ref())))
            }
        }
    }

    /// Takes what the server says first, whatever it is. False: it is not complete.
    pub fn skip_greeting(&self, input: &mut Input<'_>) -> Result<bool, String> {
        match self {
            Answer::Delimited(end, _) => Ok(end.next(input)?.is_some()),
            _ => Ok(true),
        }
    }
}

fn incomplete(input: &Input<'_>, why: &str) -> Result<Option<Received>, String> {
    if input.len() <= ANSWER_MAX {
        return Ok(None);
    }
    Err(format!("{} {why} in {ANSWER_MAX} bytes", show(input.bytes())))
}

fn judge(body: &[u8], fine: bool, check: Option<&Check>) -> Received {
    let right = match check {
        None => fine,
        Some(Check::Is(expected)) => *body == **expected,
        Some(Check::Contains(regex)) => regex.is_match(body),
    };
    match (right, check) {
        (true, _) => Received::Right,
        (false, None) => Received::Wrong(show(body)),
        (false, Some(Check::Is(expected))) => {
            Received::Wrong(format!("{} where {} was expected", show(body), show(expected)))
        }
        (false, Some(Check::Contains(regex))) => {
            Received::Wrong(format!("{} does not match /{regex}/", show(body)))
        }
    }
}

impl End {
    /// The next answer without its delimiter, and whether its protocol calls it a success.
    fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<(&'a [u8], bool)>, String> {
        match self {
            End::Until(delimiter) => {
                let Some(at) = input.find(delimiter, ANSWER_MAX) else { return Ok(None) };
                let body = input.take(at);
                input.take(delimiter.len());
                Ok(Some((body, true)))
            }
            End::Frame(framing) => {
                let before = show(input.bytes());
                let body = framing.next(input).map_err(|error| format!("{before}: {error}"))?;
                Ok(body.map(|body| (body, true)))
            }
            End::Protocol(protocol) => protocol::next(*protocol, input),
        }
    }
}

/// Bytes of a peer for a report: at most 60 of them, quoted, control characters escaped.
pub fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 60;
    let cut = &bytes[..bytes.len().min(SHOWN)];
    let more = if bytes.len() > SHOWN { "…" } else { "" };
    format!("\"{}{more}\"", cut.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `stream` byte by byte as a connection would; gives what was recognised.
    fn recognise(answer: &Answer, stream: &[u8]) -> Result<Vec<Received>, String> {
        let (mut found, mut from) = (Vec::new(), 0);
        for to in 1..=stream.len() {
            let mut input = Input::new(&stream[from..to]);
            while let Some(received) = answer.next(&mut input)? {
                found.push(received);
            }
            from = to - input.len();
        }
        assert_eq!(from, stream.len(), "all of it belongs to an answer");
        Ok(found)
    }

    #[test]
    fn answers_are_recognised_byte_by_byte() {
        let until = |check| Answer::Delimited(End::Until(Rc::from(&b"\r\n"[..])), check);
        let ok = Check::Contains(Rc::new(Regex::new("^2").unwrap()));
        let right = || Received::Right;
        assert_eq!(
            recognise(&Answer::Bytes(Rc::from(&b"+PONG\r\n"[..])), b"+PONG\r\n+PONG\r\n"),
            Ok(vec![right(), right()])
        );
        assert_eq!(
            recognise(&Answer::Matches(Rc::new(Regex::new("[0-9]+;").unwrap())), b"12;3;"),
            Ok(vec![right(), right()])
        );
        assert_eq!(
            recognise(&until(Some(ok)), b"250 OK\r\n500 no\r\n"),
            Ok(vec![right(), Received::Wrong("\"500 no\" does not match /^2/".into())])
        );
        let frames =
            Answer::Delimited(End::Frame("u8".parse().unwrap()), Some(Check::Is(Rc::from(&b"ab"[..]))));
        assert_eq!(
            recognise(&frames, b"\x02ab\x01x"),
            Ok(vec![right(), Received::Wrong("\"x\" where \"ab\" was expected".into())])
        );
    }

    #[test]
    fn a_wrong_byte_is_shown_with_what_was_expected() {
        let error = recognise(&Answer::Bytes(Rc::from(&b"+PONG\r\n"[..])), b"-ERR").unwrap_err();
        assert_eq!(error, r#""-" where "+PONG\r\n" was expected"#);
    }
}
