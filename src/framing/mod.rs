//! Framing: finds the messages in a stream of bytes.
//!
//! TCP carries bytes, not messages: two messages may arrive together, and one may arrive in pieces. A framing is a pure
//! function of the received bytes; it has no state and allocates nothing. An incomplete message stays with the
//! connection and is delivered again in front of the next bytes. A body is a slice of the received bytes.
//!
//! | name | a frame on the wire | default maximum of a body |
//! | --- | --- | --- |
//! | `u8` | length in one byte, then the body | 255 bytes |
//! | `u16be`, `u16le` | length in two bytes, big- or little-endian, then the body | 65,535 bytes |
//! | `u32be`, `u32le`, `u64be`, `u64le` | length in four or eight bytes, then the body | 1 MiB |
//! | `line` | the body, then `\n`; a `\r` before it is removed | 8 KiB |
//! | `crlf` | the body, then `\r\n`; a `\r` or `\n` alone is an error | 8 KiB |
//! | `fixed:N` | N bytes | N bytes |
//! | `raw` | all bytes that have arrived | – |
//! | (in code) [`Delimiter`] | the body, then the delimiter | 8 KiB |
//!
//! # In a service
//!
//! Take frames in a loop until there is none: one call of [`Service::data`](crate::Service::data) may bring several
//! frames, and it is not called again for frames that were left.
//!
//! ```
//! use tidemill::{Input, Service, Socket, SocketLimits, framing::Framing};
//!
//! /// Answers each frame with the same frame.
//! struct Frames { framing: Framing }
//!
//! impl Frames {
//!     fn limits(&self) -> SocketLimits {
//!         // Without this, a frame longer than the default `message` would close the connection.
//!         SocketLimits { message: self.framing.inbox_limit(), ..SocketLimits::default() }
//!     }
//! }
//!
//! impl Service for Frames {
//!     type Session = ();
//!     fn open(&mut self, _: &mut Socket<'_>) {}
//!     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
//!         loop {
//!             let answered = match self.framing.next(input) {
//!                 Ok(Some(body)) => self.framing.send(socket, body),
//!                 Ok(None) => return,
//!                 Err(error) => Err(error),
//!             };
//!             if let Err(error) = answered {
//!                 return socket.close_as(error.into());
//!             }
//!         }
//!     }
//! }
//!
//! let frames = Frames { framing: "u32be".parse().unwrap() };
//! assert_eq!(frames.limits().message, 1024 * 1024 + 4);
//! ```
//!
//! # After an error
//!
//! Close the connection: it is unknown where the next frame begins. After an error nothing is taken, and the same call
//! returns the same error. All frames before it have been delivered.
//!
//! # Changing the framing
//!
//! A protocol may change from lines to length-prefixed frames within a stream. Change right after a frame was taken,
//! before the old framing is called again: a call that finds no frame marks the received bytes as searched, and the
//! new framing would miss a delimiter in them.
//!
//! # FIN within a frame
//!
//! A framing does not see the end of the stream. In [`Service::end`](crate::Service::end),
//! [`Socket::unread`](crate::Socket::unread) is empty if the last frame was complete.

use std::fmt;
use std::str::FromStr;

use crate::base::reason::CloseReason;
use crate::connection::socket::Socket;
use crate::parts::inbox::Input;

mod counted;
mod ended;
pub mod proxy_header;
mod tagged;
mod varint;

pub use counted::{Fixed, LengthPrefix};
pub use ended::{Delimiter, Lines};
pub use tagged::{TagAndBody, Tagged};
pub use varint::Varint;

/// Any of the framings, chosen at run time, for example by its name.
///
/// # Examples
///
/// ```
/// use tidemill::{Input, framing::Framing};
///
/// let framing: Framing = "u16be".parse().unwrap();
/// let mut wire = Vec::new();
/// framing.encode(b"hello", &mut wire).unwrap();
/// framing.encode(b"", &mut wire).unwrap();
/// assert_eq!(wire, b"\0\x05hello\0\0");
///
/// let mut input = Input::new(&wire);
/// assert_eq!(framing.next(&mut input), Ok(Some(&b"hello"[..])));
/// assert_eq!(framing.next(&mut input), Ok(Some(&b""[..])));
/// assert_eq!(framing.next(&mut input), Ok(None));
///
/// let error = "u23".parse::<Framing>().unwrap_err();
/// assert!(error.to_string().starts_with("\"u23\" is not a framing; choose one of u8, u16be, "));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Framing {
    /// The length of the body, then the body.
    LengthPrefix(LengthPrefix),
    /// The length of the body as a variable-length integer, then the body.
    Varint(Varint),
    /// Text lines.
    Lines(Lines),
    /// The body, then a delimiter.
    Delimiter(Delimiter),
    /// Frames of a fixed length.
    Fixed(Fixed),
    /// No framing: a frame is all that has arrived.
    Raw,
}

impl Framing {
    /// Sets the maximum length of a body in bytes, without prefix, delimiter or line end. No effect on
    /// [`Fixed`](Framing::Fixed) and [`Raw`](Framing::Raw).
    pub fn max(self, bytes: usize) -> Framing {
        match self {
            Framing::LengthPrefix(framing) => Framing::LengthPrefix(framing.max_payload(bytes)),
            Framing::Varint(framing) => Framing::Varint(framing.max_payload(bytes)),
            Framing::Lines(framing) => Framing::Lines(framing.max(bytes)),
            Framing::Delimiter(framing) => Framing::Delimiter(framing.max(bytes)),
            Framing::Fixed(_) | Framing::Raw => self,
        }
    }

    /// Takes the next frame and returns its body. `None`, and nothing is taken, if it is not complete yet.
    ///
    /// # Errors
    ///
    /// When the bytes cannot be a frame: see [`FrameError`]. Nothing is taken.
    pub fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<&'a [u8]>, FrameError> {
        match self {
            Framing::LengthPrefix(framing) => framing.next(input),
            Framing::Varint(framing) => framing.next(input),
            Framing::Lines(framing) => framing.next(input),
            Framing::Delimiter(framing) => framing.next(input),
            Framing::Fixed(framing) => framing.next(input),
            Framing::Raw => Ok(Some(input.take_all()).filter(|bytes| !bytes.is_empty())),
        }
    }

    /// The smallest [`SocketLimits::message`](crate::SocketLimits::message) with which a frame of maximum length fits,
    /// in bytes: the maximum of a body plus prefix, delimiter or line end. 0 for raw, which leaves nothing untaken.
    pub fn inbox_limit(&self) -> usize {
        match self {
            Framing::LengthPrefix(framing) => framing.inbox_limit(),
            Framing::Varint(framing) => framing.inbox_limit(),
            Framing::Lines(framing) => framing.inbox_limit(),
            Framing::Delimiter(framing) => framing.inbox_limit(),
            Framing::Fixed(framing) => framing.inbox_limit(),
            Framing::Raw => 0,
        }
    }

    fn wrap(&self, body: &[u8]) -> Result<Wrapping<'_>, FrameError> {
        match self {
            Framing::LengthPrefix(framing) => framing.wrap(body),
            Framing::Varint(framing) => framing.wrap(body),
            Framing::Lines(framing) => framing.wrap(body),
            Framing::Delimiter(framing) => framing.wrap(body),
            Framing::Fixed(framing) => framing.wrap(body),
            Framing::Raw => Ok(Wrapping::NONE),
        }
    }
}

/// Why received bytes are not a frame, or why a body cannot be sent as one.
///
/// # Examples
///
/// ```
/// use tidemill::framing::{FrameError, Lines};
///
/// let error = Lines::LENIENT.encode(b"two\nlines", &mut Vec::new()).unwrap_err();
/// assert_eq!(error, FrameError::ContainsEnd { at: 3 });
/// assert_eq!(error.to_string(), "a body to be sent contains the end of a frame after 3 bytes");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum FrameError {
    /// A received length, or a body to be sent, exceeds the maximum.
    TooLong {
        /// Bytes in the body.
        length: u64,
        /// Bytes allowed.
        max: usize,
    },
    /// A received length that counts itself is less than its own size.
    TooShort {
        /// The length.
        length: u64,
        /// The size of the length.
        min: usize,
    },
    /// A received length is not a varint in its shortest form, or has too many bytes.
    BadVarint {
        /// Bytes allowed for the length.
        max: usize,
    },
    /// There was no delimiter or line end within the maximum length.
    Unended {
        /// Bytes allowed.
        max: usize,
    },
    /// A strict line contains a `\n` without a `\r` before it.
    LoneLineFeed {
        /// Bytes of the line before it.
        at: usize,
    },
    /// A strict line contains a `\r` without a `\n` behind it.
    LoneReturn {
        /// Bytes of the line before it.
        at: usize,
    },
    /// A body to be sent contains the delimiter or line end, or would form one with the bytes behind it.
    ContainsEnd {
        /// Bytes of the body before it.
        at: usize,
    },
    /// A body to be sent does not have the fixed length, or a tag not that of its framing.
    WrongLength {
        /// Bytes in the body.
        length: usize,
        /// Bytes in every frame.
        exact: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong { length, max } => {
                write!(f, "a frame of {length} bytes is longer than the {max} allowed")
            }
            FrameError::TooShort { length, min } => {
                write!(f, "a length that counts itself is at least {min}, and was {length}")
            }
            FrameError::BadVarint { max } => {
                write!(f, "a length is not a varint of at most {max} bytes in its shortest form")
            }
            FrameError::Unended { max } => write!(f, "a frame did not end within the {max} bytes allowed"),
            FrameError::LoneLineFeed { at } => {
                write!(f, "a line feed without a carriage return after {at} bytes of a line")
            }
            FrameError::LoneReturn { at } => {
                write!(f, "a carriage return without a line feed after {at} bytes of a line")
            }
            FrameError::ContainsEnd { at } => {
                write!(f, "a body to be sent contains the end of a frame after {at} bytes")
            }
            FrameError::WrongLength { length, exact } => {
                write!(f, "a body of {length} bytes cannot be sent: every frame has {exact}")
            }
        }
    }
}

impl std::error::Error for FrameError {}

impl From<FrameError> for CloseReason {
    /// The reason to close a connection with: [`CloseReason::TooLong`] or [`CloseReason::Malformed`] for received
    /// bytes, [`CloseReason::Local`] for a body that could not be sent.
    fn from(error: FrameError) -> CloseReason {
        match error {
            FrameError::TooLong { .. } | FrameError::Unended { .. } => CloseReason::TooLong,
            FrameError::LoneLineFeed { .. }
            | FrameError::LoneReturn { .. }
            | FrameError::TooShort { .. }
            | FrameError::BadVarint { .. } => CloseReason::Malformed,
            FrameError::ContainsEnd { .. } | FrameError::WrongLength { .. } => CloseReason::Local,
        }
    }
}

/// The error for a name that is not that of a framing. Its message lists the valid names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFraming {
    asked: String,
}

impl fmt::Display for UnknownFraming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a framing; choose one of ", self.asked)?;
        f.write_str(
            "u8, u16be, u16le, u24be, u24le, u32be, u32le, u64be, u64le (any of these with :self if the length counts \
             itself), varint28, varint32, varint64, line, crlf, fixed:N (N bytes, at least 1), raw",
        )
    }
}

impl std::error::Error for UnknownFraming {}

impl FromStr for Framing {
    type Err = UnknownFraming;

    /// Parses the name of a framing, which gets the default maximum. A [`Delimiter`] has no name.
    fn from_str(name: &str) -> Result<Framing, UnknownFraming> {
        Ok(match name {
            "varint28" => Framing::Varint(Varint::U28),
            "varint32" => Framing::Varint(Varint::U32),
            "varint64" => Framing::Varint(Varint::U64),
            "line" => Framing::Lines(Lines::LENIENT),
            "crlf" => Framing::Lines(Lines::STRICT),
            "raw" => Framing::Raw,
            _ => prefix(name)
                .map(Framing::LengthPrefix)
                .or_else(|| fixed(name))
                .ok_or_else(|| UnknownFraming { asked: name.to_owned() })?,
        })
    }
}

fn prefix(name: &str) -> Option<LengthPrefix> {
    let (name, counts_itself) = name.strip_suffix(":self").map_or((name, false), |name| (name, true));
    let prefix = match name {
        "u8" => LengthPrefix::U8,
        "u16be" => LengthPrefix::U16_BE,
        "u16le" => LengthPrefix::U16_LE,
        "u24be" => LengthPrefix::U24_BE,
        "u24le" => LengthPrefix::U24_LE,
        "u32be" => LengthPrefix::U32_BE,
        "u32le" => LengthPrefix::U32_LE,
        "u64be" => LengthPrefix::U64_BE,
        "u64le" => LengthPrefix::U64_LE,
        _ => return None,
    };
    Some(prefix.counts_itself(counts_itself))
}

fn fixed(name: &str) -> Option<Framing> {
    let bytes = name.strip_prefix("fixed:")?;
    // `parse` alone would accept a sign.
    let bytes = bytes.parse().ok().filter(|_| bytes.starts_with(|c: char| c.is_ascii_digit()))?;
    Fixed::new(bytes).map(Framing::Fixed)
}

impl fmt::Display for Framing {
    /// The name that `parse` accepts. A delimiter is printed as `delimiter:` and its bytes, which `parse` does not
    /// accept.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Framing::LengthPrefix(framing) => framing.fmt(f),
            Framing::Varint(framing) => framing.fmt(f),
            Framing::Lines(framing) => framing.fmt(f),
            Framing::Delimiter(framing) => framing.fmt(f),
            Framing::Fixed(framing) => framing.fmt(f),
            Framing::Raw => f.write_str("raw"),
        }
    }
}

/// Bytes in front of a body at most: a varint of 64 bits.
const HEAD_MAX: usize = 10;

/// The bytes before and behind a body on the wire. It exists only for a body that may be sent.
struct Wrapping<'a> {
    head: [u8; HEAD_MAX],
    head_len: usize,
    tail: &'a [u8],
}

impl Wrapping<'_> {
    const NONE: Wrapping<'static> = Wrapping { head: [0; HEAD_MAX], head_len: 0, tail: b"" };

    fn around(&self, body: &[u8], mut write: impl FnMut(&[u8])) {
        for part in [&self.head[..self.head_len], body, self.tail] {
            if !part.is_empty() {
                write(part);
            }
        }
    }
}

fn refuse_longer(body: &[u8], max: usize) -> Result<(), FrameError> {
    let length = body.len() as u64;
    if body.len() > max { Err(FrameError::TooLong { length, max }) } else { Ok(()) }
}

/// `send` and `encode`, which are the same for all framings.
macro_rules! sending {
    ($($framing:ty),*) => {$(
        impl $framing {
            /// Sends `body` as one frame.
            ///
            /// # Errors
            ///
            /// When the receiver would not get exactly this body: see [`FrameError`]. Nothing is sent.
            pub fn send(&self, socket: &mut Socket<'_>, body: &[u8]) -> Result<(), FrameError> {
                self.wrap(body)?.around(body, |part| socket.send(part));
                Ok(())
            }

            /// Appends `body` to `out` as one frame, without a [`Socket`].
            ///
            /// # Errors
            ///
            /// As [`send`](Self::send). Nothing is appended.
            pub fn encode(&self, body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
                self.wrap(body)?.around(body, |part| out.extend_from_slice(part));
                Ok(())
            }
        }
    )*};
}

sending!(Framing, LengthPrefix, Varint, Lines, Delimiter, Fixed);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::inbox::Inbox;
    use proptest::prelude::*;

    const NAMES: [&str; 17] = [
        "u8",
        "u16be",
        "u16le",
        "u24be",
        "u24le",
        "u32be",
        "u32le",
        "u64be",
        "u64le",
        "u8:self",
        "u24le:self",
        "u32be:self",
        "varint28",
        "varint64",
        "line",
        "crlf",
        "fixed:3",
    ];

    /// How bytes that were not taken are delivered again: the two ways of the reactor, and to a service that takes one
    /// frame per call.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Way {
        /// The new bytes are appended to the inbox (long rests).
        Appended,
        /// The rest is put in front of the new bytes (short rests).
        InFront,
        /// One frame per call; the rest is delivered again.
        OneByOne,
    }

    const WAYS: [Way; 3] = [Way::Appended, Way::InFront, Way::OneByOne];

    /// The result for a stream: its frames, then an error or the bytes of an incomplete frame.
    #[derive(Clone, Debug, PartialEq)]
    struct Arrival {
        frames: Vec<Vec<u8>>,
        rest: Result<Vec<u8>, FrameError>,
    }

    /// Delivers the parts one after the other, as the reactor does.
    fn deliver<'a>(framing: &Framing, parts: impl IntoIterator<Item = &'a [u8]>, way: Way) -> Arrival {
        let (mut inbox, mut frames) = (Inbox::default(), Vec::new());
        for part in parts {
            let block = [inbox.unread(), part].concat();
            if way != Way::InFront {
                inbox.append(part);
            }
            loop {
                let before = frames.len();
                let shown = if way == Way::InFront { &block[..] } else { inbox.unread() };
                let mut input = Input::with_scanned(shown, inbox.scanned());
                if let Err(error) = take_frames(framing, &mut input, way, &mut frames) {
                    return Arrival { frames, rest: Err(error) };
                }
                let (taken, scanned) = input.finish();
                match way {
                    Way::InFront => inbox.replace(&block[taken..], scanned),
                    Way::Appended | Way::OneByOne => inbox.consume(taken, scanned),
                }
                if way != Way::OneByOne || frames.len() == before {
                    break;
                }
            }
            assert!(inbox.unread().len() < framing.inbox_limit().max(1), "the reactor would have closed it");
        }
        Arrival { frames, rest: Ok(inbox.unread().to_vec()) }
    }

    fn take_frames(
        framing: &Framing,
        input: &mut Input<'_>,
        way: Way,
        frames: &mut Vec<Vec<u8>>,
    ) -> Result<(), FrameError> {
        while let Some(body) = framing.next(input)? {
            frames.push(body.to_vec());
            if way == Way::OneByOne {
                break;
            }
        }
        Ok(())
    }

    /// A model of all framings, over all bytes at once.
    fn model(framing: &Framing, wire: &[u8]) -> Arrival {
        let (mut frames, mut rest) = (Vec::new(), wire.to_vec());
        loop {
            match model_frame(framing, &rest) {
                Ok(Some((body, length))) => {
                    frames.push(body);
                    rest.drain(..length);
                }
                Ok(None) => return Arrival { frames, rest: Ok(rest) },
                Err(error) => return Arrival { frames, rest: Err(error) },
            }
        }
    }

    /// A body and the length of its frame.
    fn model_frame(framing: &Framing, wire: &[u8]) -> Result<Option<(Vec<u8>, usize)>, FrameError> {
        match framing {
            Framing::LengthPrefix(_) => model_prefix(&framing.to_string(), framing.inbox_limit(), wire),
            Framing::Varint(_) => {
                let bytes = if framing.to_string() == "varint28" { 4 } else { 10 };
                model_varint(bytes, framing.inbox_limit() - bytes, wire)
            }
            Framing::Lines(_) => model_line(framing, wire),
            Framing::Delimiter(_) => {
                let name = framing.to_string();
                let delimiter = name.strip_prefix("delimiter:").unwrap().as_bytes();
                let max = framing.inbox_limit() - delimiter.len();
                match (0..=max).find(|&at| wire.get(at..).is_some_and(|rest| rest.starts_with(delimiter))) {
                    Some(at) => Ok(Some((wire[..at].to_vec(), at + delimiter.len()))),
                    None if wire.len() >= max + delimiter.len() => Err(FrameError::Unended { max }),
                    None => Ok(None),
                }
            }
            Framing::Fixed(_) => {
                let n = framing.inbox_limit();
                Ok((wire.len() >= n).then(|| (wire[..n].to_vec(), n)))
            }
            Framing::Raw => Ok((!wire.is_empty()).then(|| (wire.to_vec(), wire.len()))),
        }
    }

    fn model_prefix(name: &str, limit: usize, wire: &[u8]) -> Result<Option<(Vec<u8>, usize)>, FrameError> {
        let (name, itself) = name.strip_suffix(":self").map_or((name, false), |name| (name, true));
        let width = name.trim_matches(char::is_alphabetic).parse::<usize>().unwrap() / 8;
        let max = limit - width;
        if wire.len() < width {
            return Ok(None);
        }
        let mut header = wire[..width].to_vec();
        if name.ends_with("le") {
            header.reverse();
        }
        let counted = header.iter().fold(0i128, |sum, &byte| sum * 256 + i128::from(byte));
        let length = counted - if itself { width as i128 } else { 0 };
        if length < 0 {
            return Err(FrameError::TooShort { length: counted as u64, min: width });
        }
        if length > max as i128 {
            return Err(FrameError::TooLong { length: length as u64, max });
        }
        let end = width + length as usize;
        Ok((wire.len() >= end).then(|| (wire[width..end].to_vec(), end)))
    }

    fn model_varint(bytes: usize, max: usize, wire: &[u8]) -> Result<Option<(Vec<u8>, usize)>, FrameError> {
        let bad = Err(FrameError::BadVarint { max: bytes });
        let Some(last) = wire.iter().position(|byte| byte & 0x80 == 0) else {
            // The tenth byte has one bit, so a length is known to be wrong there even if it goes on.
            return if wire.len() < bytes { Ok(None) } else { bad };
        };
        let groups = &wire[..=last];
        let length = groups.iter().rev().fold(0u128, |sum, byte| sum * 128 + u128::from(byte & 0x7f));
        if last >= bytes || length > u128::from(u64::MAX) || (last > 0 && wire[last] == 0) {
            return bad;
        }
        if length > max as u128 {
            return Err(FrameError::TooLong { length: length as u64, max });
        }
        let end = last + 1 + length as usize;
        Ok((wire.len() >= end).then(|| (wire[last + 1..end].to_vec(), end)))
    }

    fn model_line(framing: &Framing, wire: &[u8]) -> Result<Option<(Vec<u8>, usize)>, FrameError> {
        let (is_strict, max) = (framing.to_string() == "crlf", framing.inbox_limit() - 2);
        let mut body = Vec::new();
        for (at, &byte) in wire.iter().enumerate() {
            let has_return = body.last() == Some(&b'\r');
            if body.len() > max + usize::from(has_return) {
                break;
            }
            if byte == b'\n' {
                if has_return {
                    body.pop();
                } else if is_strict && body.len() <= max {
                    return Err(FrameError::LoneLineFeed { at });
                }
                let lone = body.iter().position(|&byte| byte == b'\r');
                return match lone {
                    _ if body.len() > max => break,
                    Some(at) if is_strict => Err(FrameError::LoneReturn { at }),
                    _ => Ok(Some((body, at + 1))),
                };
            }
            body.push(byte);
        }
        let may_end = body.len() <= max || (body.len() == max + 1 && body.last() == Some(&b'\r'));
        if may_end { Ok(None) } else { Err(FrameError::Unended { max }) }
    }

    fn named(name: &str) -> Framing {
        name.parse().unwrap()
    }

    fn delimited(delimiter: &[u8]) -> Framing {
        Framing::Delimiter(Delimiter::new(delimiter).unwrap())
    }

    #[test]
    fn frames_do_not_depend_on_where_the_stream_is_cut() {
        let framings = NAMES.into_iter().map(named).chain([delimited(b"\0"), delimited(b"aab")]);
        for framing in framings {
            let bodies: &[&[u8]] = if let Framing::Fixed(_) = framing {
                &[b"one", b"two", b"34\n"]
            } else {
                &[b"a", b"", b"cde", b""]
            };
            let mut wire = Vec::new();
            for body in bodies {
                framing.encode(body, &mut wire).unwrap();
            }
            // In every framing, this begins one more frame.
            wire.push(5);
            for way in WAYS {
                let whole = deliver(&framing, [&wire[..]], way);
                assert_eq!(whole.frames, bodies, "{framing}");
                assert_eq!(whole.rest, Ok(vec![5]), "{framing}");
                for i in 0..=wire.len() {
                    for j in i..=wire.len() {
                        let parts = [&wire[..i], &wire[i..j], &wire[j..]];
                        assert_eq!(
                            deliver(&framing, parts, way),
                            whole,
                            "{framing} cut at {i} and {j}, {way:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn an_error_does_not_depend_on_where_the_stream_is_cut() {
        for (name, wire) in [
            ("u8", &b"\x01a\x05bcdef"[..]),
            ("u8:self", b"\x02a\0bcdef"),
            ("varint28", b"\x01a\x81\0bcdef"),
            ("varint28", b"\x01a\x81\x80\x80\x80"),
            ("u16le", b"\x01\x00a\x00\x01b"),
            ("line", b"a\nabcdefg\n"),
            ("line", b"a\nabcd\r\r\n"),
            ("crlf", b"a\r\nb\nc\r\n"),
            ("crlf", b"a\r\nb\rc\r\n"),
            ("crlf", b"a\r\nabcd\n"),
        ] {
            let framing = named(name).max(4);
            let whole = model(&framing, wire);
            assert!(whole.rest.is_err() && whole.frames == [b"a"], "{name}: {whole:?}");
            for way in WAYS {
                for i in 0..=wire.len() {
                    assert_eq!(
                        deliver(&framing, [&wire[..i], &wire[i..]], way),
                        whole,
                        "{name} cut at {i}, {way:?}"
                    );
                }
                assert_eq!(deliver(&framing, wire.chunks(1), way), whole, "{name} byte by byte, {way:?}");
            }
        }
    }

    #[test]
    fn a_framing_may_change_after_a_frame() {
        let wire = b"lines\nGO\none|t\nwo|";
        let delimiter = Delimiter::new(b"|").unwrap();
        for cut in 0..=wire.len() {
            let (mut inbox, mut bodies, mut is_changed) = (Inbox::default(), Vec::new(), false);
            for part in [&wire[..cut], &wire[cut..]] {
                inbox.append(part);
                let mut input = Input::with_scanned(inbox.unread(), inbox.scanned());
                let next = |is_changed, input: &mut Input<'_>| {
                    let body = if is_changed { delimiter.next(input) } else { Lines::LENIENT.next(input) };
                    body.unwrap().map(<[u8]>::to_vec)
                };
                while let Some(body) = next(is_changed, &mut input) {
                    is_changed |= body == b"GO";
                    bodies.push(body);
                }
                let (taken, scanned) = input.finish();
                inbox.consume(taken, scanned);
            }
            assert_eq!(bodies, [&b"lines"[..], b"GO", b"one", b"t\nwo"], "cut at {cut}");
        }
    }

    #[test]
    fn raw_returns_all_bytes_and_no_empty_frame() {
        let mut input = Input::new(b"abc");
        assert_eq!(Framing::Raw.next(&mut input), Ok(Some(&b"abc"[..])));
        assert_eq!(Framing::Raw.next(&mut input), Ok(None));
        let mut out = Vec::new();
        Framing::Raw.encode(b"abc", &mut out).unwrap();
        Framing::Raw.encode(b"", &mut out).unwrap();
        assert_eq!(out, b"abc");
    }

    #[test]
    fn a_printed_name_parses_and_other_names_do_not() {
        let longest = format!("fixed:{}", usize::MAX);
        for name in NAMES.into_iter().chain(["raw", "fixed:1", &longest]) {
            assert_eq!(named(name).to_string(), name);
        }
        for name in [
            "",
            "U8",
            "u24",
            "u32be:",
            "line:self",
            "varint",
            "u8be",
            "u16",
            "u32be ",
            "lines",
            "fixed",
            "fixed:",
            "fixed:0",
            "fixed:+1",
            "fixed:-1",
            "fixed:1x",
            "fixed:18446744073709551616",
            "delimiter:a",
        ] {
            let error = name.parse::<Framing>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{name:?} is not a framing; choose one of u8, u16be,")),
                "{error}"
            );
        }
        let choices = UnknownFraming { asked: String::new() }.to_string();
        assert!(NAMES.iter().all(|name| choices.contains(name.split(':').next().unwrap())), "{choices}");
        assert_eq!(delimited(b"\r\n\0|").to_string(), r"delimiter:\r\n\x00|");
    }

    #[test]
    fn the_default_limits_are_as_documented_and_fit_the_socket_limits() {
        let limits = crate::SocketLimits::default();
        for (name, expected) in [
            ("u8", 255 + 1),
            ("u16be", 65_535 + 2),
            ("u32be", 1_048_576 + 4),
            ("u24be", 1_048_576 + 3),
            ("varint28", 1_048_576 + 4),
            ("varint64", 1_048_576 + 10),
            ("u64le", 1_048_576 + 8),
            ("line", 8_192 + 2),
            ("crlf", 8_192 + 2),
            ("fixed:7", 7),
            ("raw", 0),
        ] {
            assert_eq!(named(name).inbox_limit(), expected, "{name}");
            assert!(expected <= limits.message, "{name} does not fit the default limits");
        }
        assert_eq!(delimited(b"--").inbox_limit(), 8_192 + 2);
        assert_eq!(named("u32le").max(10).inbox_limit(), 14);
        assert_eq!(named("u8").max(1000).inbox_limit(), 256);
        assert_eq!(named("fixed:7").max(1).inbox_limit(), 7);
        assert_eq!(delimited(b"--").max(usize::MAX).inbox_limit(), usize::MAX);
    }

    #[test]
    fn errors_name_the_figures_and_the_reason_to_close() {
        for (error, sentence, why) in [
            (
                FrameError::TooLong { length: u64::MAX, max: 1 },
                "a frame of 18446744073709551615 bytes is longer than the 1 allowed",
                CloseReason::TooLong,
            ),
            (
                FrameError::Unended { max: 8192 },
                "a frame did not end within the 8192 bytes allowed",
                CloseReason::TooLong,
            ),
            (
                FrameError::TooShort { length: 3, min: 4 },
                "a length that counts itself is at least 4, and was 3",
                CloseReason::Malformed,
            ),
            (
                FrameError::BadVarint { max: 4 },
                "a length is not a varint of at most 4 bytes in its shortest form",
                CloseReason::Malformed,
            ),
            (
                FrameError::LoneLineFeed { at: 3 },
                "a line feed without a carriage return after 3 bytes of a line",
                CloseReason::Malformed,
            ),
            (
                FrameError::LoneReturn { at: 3 },
                "a carriage return without a line feed after 3 bytes of a line",
                CloseReason::Malformed,
            ),
            (
                FrameError::ContainsEnd { at: 3 },
                "a body to be sent contains the end of a frame after 3 bytes",
                CloseReason::Local,
            ),
            (
                FrameError::WrongLength { length: 3, exact: 4 },
                "a body of 3 bytes cannot be sent: every frame has 4",
                CloseReason::Local,
            ),
        ] {
            assert_eq!(error.to_string(), sentence);
            assert_eq!(CloseReason::from(error), why);
        }
    }

    fn framings() -> impl Strategy<Value = Framing> {
        let names = prop::sample::select(NAMES.to_vec()).prop_map(named);
        let delimiters = prop::sample::select(vec!["a", "ab", "aa", "aab", "abab"]);
        let framings = prop_oneof![3 => names, 1 => delimiters.prop_map(|text| delimited(text.as_bytes()))];
        (framings, 0..9usize).prop_map(|(framing, max)| framing.max(max))
    }

    /// Few different bytes, so that lengths are small, and delimiters and parts of them are frequent.
    fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            4 => prop::sample::select(b"ab\r\n".to_vec()),
            2 => 0..4u8,
            1 => any::<u8>(),
        ];
        prop::collection::vec(byte, 0..max)
    }

    fn cut<'a>(wire: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
        let (mut parts, mut rest) = (Vec::new(), wire);
        for &size in sizes {
            let (part, after) = rest.split_at(size.min(rest.len()));
            parts.push(part);
            rest = after;
        }
        parts.push(rest);
        parts
    }

    fn sizes() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(0..7usize, 0..40)
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anywhere_give_the_result_of_the_model(
            framing in framings(), wire in bytes(80), sizes in sizes(),
            way in prop::sample::select(WAYS.to_vec()),
        ) {
            let came = deliver(&framing, cut(&wire, &sizes), way);
            prop_assert_eq!(came, model(&framing, &wire), "{}", framing);
        }

        #[test]
        fn sent_bodies_are_received_and_nothing_else(
            framing in framings(), bodies in prop::collection::vec(bytes(9), 0..12), sizes in sizes(),
            way in prop::sample::select(WAYS.to_vec()),
        ) {
            let (mut wire, mut sent) = (Vec::new(), Vec::new());
            for body in bodies {
                let before = wire.len();
                match framing.encode(&body, &mut wire) {
                    Ok(()) => sent.push(body),
                    Err(_) => prop_assert_eq!(wire.len(), before, "a refused body was sent in part"),
                }
            }
            let came = deliver(&framing, cut(&wire, &sizes), way);
            prop_assert_eq!(came, Arrival { frames: sent, rest: Ok(Vec::new()) }, "{}", framing);
        }

        #[test]
        fn a_body_is_refused_only_if_it_would_not_be_received(framing in framings(), body in bytes(12)) {
            let mut wire = Vec::new();
            if framing.encode(&body, &mut wire).is_err() {
                let tail = match framing.to_string().as_str() {
                    "line" => "\n".to_owned(),
                    "crlf" => "\r\n".to_owned(),
                    name => name.strip_prefix("delimiter:").unwrap_or_default().to_owned(),
                };
                let came = model(&framing, &[&body, tail.as_bytes()].concat());
                prop_assert_ne!(came, Arrival { frames: vec![body], rest: Ok(Vec::new()) }, "{}", framing);
            }
        }

        #[test]
        fn no_bytes_and_no_maximum_cause_a_panic(
            name in prop::sample::select(NAMES.to_vec()), wire in prop::collection::vec(any::<u8>(), 0..300),
            max in any::<usize>(),
        ) {
            deliver(&named(name).max(max), wire.chunks(7), Way::Appended);
        }
    }
}
