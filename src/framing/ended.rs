//! Frames that end with a delimiter: lines, and frames with a delimiter of any bytes.

use std::fmt;

use memchr::{memchr, memchr2, memmem};

use super::{FrameError, Wrapping, refuse_longer};
use crate::parts::inbox::Input;

/// The default maximum of a body, like that of web servers for a line: 8 KiB in nginx (`large_client_header_buffers`),
/// 8,190 bytes in Apache (`LimitRequestLine`).
const LONGEST: usize = 8 * 1024;

/// Text lines.
///
/// ```text
///     LENIENT    h  e  l  l  o  \n  │  \n  │  o  k  \r  \n      a \r before the \n is not part of the body
///     STRICT     h  e  l  l  o  \r  \n  │  \r  \n               a \r or a \n alone is an error
/// ```
///
/// A line that is too long is an error as soon as that is certain, whether or not its end arrives.
///
/// # Lenient or strict
///
/// If two programs that process the same stream disagree about line ends, an attacker can make them see different
/// messages (SMTP smuggling: one server passed a lone `\n` on as text, and the next one took it for a line end). If
/// the protocol requires `\r\n` and other programs relay it, use [`STRICT`](Lines::STRICT).
///
/// # A received line that cannot be sent
///
/// Lenient lines lose one `\r`, so the body of `hello\r\r\n` is `hello\r`. Sent as a line, it would lose the other `\r`
/// too, so `send` refuses it. A service that relays lines must not close the *receiver* for that: remove control
/// characters first ([`printable`](crate::base::text::printable)), or drop the line.
///
/// # Examples
///
/// ```
/// use tidemill::{Input, framing::{FrameError, Lines}};
///
/// let mut input = Input::new(b"one\r\ntwo\nthr");
/// assert_eq!(Lines::STRICT.next(&mut input), Ok(Some(&b"one"[..])));
/// assert_eq!(Lines::STRICT.next(&mut input), Err(FrameError::LoneLineFeed { at: 3 }));
/// assert_eq!(Lines::LENIENT.next(&mut input), Ok(Some(&b"two"[..])));
/// assert_eq!(Lines::LENIENT.next(&mut input), Ok(None));
///
/// const SHORT: Lines = Lines::LENIENT.max(512);
/// # assert_eq!(SHORT.inbox_limit(), 514);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    strict: bool,
    max: usize,
}

impl Lines {
    /// Lines end with `\n`; a `\r` before it is removed. Lines are sent with `\n`.
    pub const LENIENT: Lines = Lines { strict: false, max: LONGEST };
    /// Lines end with `\r\n`; a `\r` or `\n` anywhere else is an error.
    pub const STRICT: Lines = Lines { strict: true, max: LONGEST };

    /// Sets the maximum length of a line in bytes, without its end. Default 8 KiB.
    pub const fn max(self, bytes: usize) -> Lines {
        Lines { max: bytes, ..self }
    }

    /// As [`Framing::next`](super::Framing::next).
    ///
    /// # Errors
    ///
    /// [`FrameError::Unended`]; if strict, also [`FrameError::LoneLineFeed`] and [`FrameError::LoneReturn`].
    pub fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<&'a [u8]>, FrameError> {
        // The longest frame is `max` bytes, `\r` and `\n`; the `\n` is then at offset `max + 1`.
        let end = input.find(b"\n", self.max.saturating_add(1));
        let raw = &input.bytes()[..end.unwrap_or(input.len())];
        // Behind `max` bytes, only one `\r` may follow (before the `\n`).
        let above = raw.get(self.max..).unwrap_or_default();
        if !(above.is_empty() || above == b"\r") {
            return Err(FrameError::Unended { max: self.max });
        }
        let Some(end) = end else { return Ok(None) };
        let body = raw.strip_suffix(b"\r");
        if self.strict {
            check_strict(raw, body)?;
        }
        input.take(end + 1);
        Ok(Some(body.unwrap_or(raw)))
    }

    /// As [`Framing::inbox_limit`](super::Framing::inbox_limit).
    pub fn inbox_limit(&self) -> usize {
        self.max.saturating_add(2)
    }

    pub(super) fn wrap(&self, body: &[u8]) -> Result<Wrapping<'static>, FrameError> {
        refuse_longer(body, self.max)?;
        let (end, tail): (_, &[u8]) = if self.strict {
            (memchr2(b'\r', b'\n', body), b"\r\n")
        } else {
            // The receiver would take a `\r` at the end of the body for a part of the line end.
            let last = body.strip_suffix(b"\r").map(<[u8]>::len);
            (memchr(b'\n', body).or(last), b"\n")
        };
        match end {
            Some(at) => Err(FrameError::ContainsEnd { at }),
            None => Ok(Wrapping { tail, ..Wrapping::NONE }),
        }
    }
}

impl Default for Lines {
    /// [`Lines::LENIENT`].
    fn default() -> Lines {
        Lines::LENIENT
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.strict { "crlf" } else { "line" })
    }
}

/// Checks a line that ended with `\n` for the strict format. `raw` is the line without `\n`, and `body` the same
/// without a `\r` at its end, if it has one.
fn check_strict(raw: &[u8], body: Option<&[u8]>) -> Result<(), FrameError> {
    let Some(body) = body else { return Err(FrameError::LoneLineFeed { at: raw.len() }) };
    match memchr(b'\r', body) {
        Some(at) => Err(FrameError::LoneReturn { at }),
        None => Ok(()),
    }
}

/// Frames that end with a delimiter, which may be any bytes, at least one.
///
/// # Examples
///
/// ```
/// use tidemill::{Input, framing::Delimiter};
///
/// let records = Delimiter::new(b"\0").unwrap();
/// let mut input = Input::new(b"one\0\0thr");
/// assert_eq!(records.next(&mut input), Ok(Some(&b"one"[..])));
/// assert_eq!(records.next(&mut input), Ok(Some(&b""[..])));
/// assert_eq!(records.next(&mut input), Ok(None));
/// assert_eq!(Delimiter::new(b""), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delimiter {
    delimiter: Box<[u8]>,
    max: usize,
}

impl Delimiter {
    /// Frames that end with `delimiter`. `None` if that is empty.
    pub fn new(delimiter: &[u8]) -> Option<Delimiter> {
        (!delimiter.is_empty()).then(|| Delimiter { delimiter: delimiter.into(), max: LONGEST })
    }

    /// Sets the maximum length of a body in bytes, without the delimiter. Default 8 KiB.
    pub fn max(self, bytes: usize) -> Delimiter {
        Delimiter { max: bytes, ..self }
    }

    /// As [`Framing::next`](super::Framing::next). The frame ends with the first occurrence of the delimiter.
    ///
    /// # Errors
    ///
    /// [`FrameError::Unended`].
    pub fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<&'a [u8]>, FrameError> {
        match input.find(&self.delimiter, self.max) {
            Some(at) => {
                let body = input.take(at);
                input.take(self.delimiter.len());
                Ok(Some(body))
            }
            None if input.len() >= self.inbox_limit() => Err(FrameError::Unended { max: self.max }),
            None => Ok(None),
        }
    }

    /// As [`Framing::inbox_limit`](super::Framing::inbox_limit).
    pub fn inbox_limit(&self) -> usize {
        self.max.saturating_add(self.delimiter.len())
    }

    pub(super) fn wrap(&self, body: &[u8]) -> Result<Wrapping<'_>, FrameError> {
        refuse_longer(body, self.max)?;
        match memmem::find(body, &self.delimiter).or_else(|| self.straddles(body)) {
            Some(at) => Err(FrameError::ContainsEnd { at }),
            None => Ok(Wrapping { tail: &self.delimiter, ..Wrapping::NONE }),
        }
    }

    /// Where a first delimiter would begin in the body and end in the delimiter behind it. With the delimiter
    /// `\r\n\r\n`, the body `x\r\n` would be received as `x`, and two bytes of the delimiter as the start of the next
    /// frame.
    fn straddles(&self, body: &[u8]) -> Option<usize> {
        let longest = body.len().min(self.delimiter.len() - 1);
        let overlap = (1..=longest).rev().find(|&n| {
            let (begun, ended) = self.delimiter.split_at(n);
            body.ends_with(begun) && self.delimiter.starts_with(ended)
        });
        overlap.map(|n| body.len() - n)
    }
}

impl fmt::Display for Delimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delimiter:{}", self.delimiter.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::inbox::Inbox;

    fn line<'a>(framing: &Lines, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, FrameError> {
        framing.next(&mut Input::new(bytes))
    }

    fn body<'a>(framing: &Delimiter, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, FrameError> {
        framing.next(&mut Input::new(bytes))
    }

    #[test]
    fn behind_the_maximum_length_only_a_line_end_may_follow() {
        let unended = Err(FrameError::Unended { max: 4 });
        for framing in [Lines::LENIENT.max(4), Lines::STRICT.max(4)] {
            for (bytes, expected) in [
                (&b"abcd\r\n"[..], Ok(Some(&b"abcd"[..]))),
                (b"abcd", Ok(None)),
                (b"abcd\r", Ok(None)),
                (b"abcde", unended),
                (b"abcde\n", unended),
                (b"abcde\r\n", unended),
                (b"abcd\r\r", unended),
                (b"abcd\r\r\n", unended),
                (b"abcd\re\n", unended),
                (b"abcdefghijkl", unended),
            ] {
                assert_eq!(line(&framing, bytes), expected, "{framing}: {}", bytes.escape_ascii());
            }
        }
        assert_eq!(line(&Lines::LENIENT.max(4), b"abcd\n"), Ok(Some(&b"abcd"[..])));
        assert_eq!(line(&Lines::LENIENT.max(4), b"abc\r\r\n"), Ok(Some(&b"abc\r"[..])));
    }

    #[test]
    fn a_maximum_of_zero_allows_only_empty_lines() {
        let empty = Lines::LENIENT.max(0);
        for ended in [&b"\n"[..], b"\r\n"] {
            assert_eq!(line(&empty, ended), Ok(Some(&b""[..])));
        }
        for incomplete in [&b""[..], b"\r"] {
            assert_eq!(line(&empty, incomplete), Ok(None));
        }
        assert_eq!(line(&empty, b"a"), Err(FrameError::Unended { max: 0 }));
        assert_eq!(line(&Lines::STRICT.max(usize::MAX), b"a\r\n"), Ok(Some(&b"a"[..])), "without a maximum");
        assert_eq!(Lines::STRICT.max(usize::MAX).inbox_limit(), usize::MAX);
    }

    #[test]
    fn a_strict_line_ends_only_with_both_bytes() {
        for (bytes, expected) in [
            (&b"\n"[..], FrameError::LoneLineFeed { at: 0 }),
            (b"ab\n.\r\n", FrameError::LoneLineFeed { at: 2 }),
            (b"ab\n\r\n", FrameError::LoneLineFeed { at: 2 }),
            (b"ab\r.\r\n", FrameError::LoneReturn { at: 2 }),
            (b"ab\r\r\n", FrameError::LoneReturn { at: 2 }),
        ] {
            let mut input = Input::new(bytes);
            assert_eq!(Lines::STRICT.next(&mut input), Err(expected), "{}", bytes.escape_ascii());
            assert_eq!(Lines::STRICT.next(&mut input), Err(expected), "asked again");
            assert_eq!(input.bytes(), bytes, "something was taken");
        }
    }

    #[test]
    fn a_body_with_a_line_end_is_not_sent() {
        let mut out = Vec::new();
        for (framing, body, at) in [
            (Lines::LENIENT, &b"ab\ncd"[..], 2),
            (Lines::LENIENT, b"ab\r", 2),
            (Lines::LENIENT, b"\r\n", 1),
            (Lines::STRICT, b"ab\ncd", 2),
            (Lines::STRICT, b"ab\rcd", 2),
            (Lines::STRICT, b"\r\n", 0),
        ] {
            assert_eq!(framing.encode(body, &mut out), Err(FrameError::ContainsEnd { at }));
        }
        let too_long = FrameError::TooLong { length: 3, max: 2 };
        assert_eq!(Lines::LENIENT.max(2).encode(b"abc", &mut out), Err(too_long));
        assert!(out.is_empty());

        Lines::LENIENT.encode(b"a\rb", &mut out).unwrap();
        Lines::STRICT.encode(b"c", &mut out).unwrap();
        assert_eq!(out, b"a\rb\nc\r\n");
    }

    #[test]
    fn a_delimiter_behind_the_maximum_length_ends_the_longest_body() {
        let framing = Delimiter::new(b"--").unwrap().max(3);
        let unended = Err(FrameError::Unended { max: 3 });
        for (bytes, expected) in [
            (&b"abc--"[..], Ok(Some(&b"abc"[..]))),
            (b"abc-", Ok(None)),
            (b"abcd", Ok(None)),
            (b"abcd-", unended),
            (b"abcd--", unended),
            (b"a--bcdefgh", Ok(Some(b"a"))),
        ] {
            assert_eq!(body(&framing, bytes), expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(framing.encode(b"abcd", &mut Vec::new()), Err(FrameError::TooLong { length: 4, max: 3 }));
    }

    #[test]
    fn a_body_that_completes_the_delimiter_too_early_is_not_sent() {
        for (delimiter, body, at) in [
            (&b"\r\n\r\n"[..], &b"x\r\n"[..], 1),
            (b"\r\n\r\n", b"x\r\n\r\ny", 1),
            (b"aa", b"ba", 1),
            (b"aaa", b"baa", 1),
            (b"abab", b"xab", 1),
        ] {
            let framing = Delimiter::new(delimiter).unwrap();
            let mut out = Vec::new();
            assert_eq!(framing.encode(body, &mut out), Err(FrameError::ContainsEnd { at }));
            assert!(out.is_empty());
        }
        // A body that ends with a beginning of the delimiter is sent if no delimiter results.
        let mut out = Vec::new();
        Delimiter::new(b"\r\n\r\n").unwrap().encode(b"x\r\n\r", &mut out).unwrap();
        assert_eq!(out, b"x\r\n\r\r\n\r\n");
    }

    /// Feeds `wire` byte by byte, and returns how many bytes were searched in all calls together: in each call, the
    /// bytes not searched before, and the `overlap` bytes before them in which a delimiter may begin.
    fn searched(wire: &[u8], overlap: usize, next: impl Fn(&mut Input<'_>) -> Option<usize>) -> usize {
        let (mut inbox, mut all) = (Inbox::default(), 0);
        for (n, byte) in wire.chunks(1).enumerate() {
            inbox.append(byte);
            all += inbox.unread().len() - inbox.scanned() + overlap;
            let mut input = Input::with_scanned(inbox.unread(), inbox.scanned());
            let body = next(&mut input);
            assert_eq!(body.is_some(), n + 1 == wire.len(), "after {n} bytes");
            let (taken, scanned) = input.finish();
            inbox.consume(taken, scanned);
        }
        assert!(inbox.unread().is_empty());
        all
    }

    #[test]
    fn a_line_that_arrives_byte_by_byte_is_searched_once() {
        for framing in [Lines::LENIENT, Lines::STRICT] {
            let mut wire = vec![b'x'; LONGEST];
            wire.extend_from_slice(b"\r\n");
            let all = searched(&wire, 0, |input| framing.next(input).unwrap().map(<[u8]>::len));
            assert_eq!(all, wire.len(), "{framing}");
        }
    }

    #[test]
    fn a_body_that_arrives_byte_by_byte_is_searched_once_per_byte_of_the_delimiter() {
        let framing = Delimiter::new(b"----").unwrap();
        let wire = [&vec![b'-'; 3][..], &vec![b'x'; LONGEST - 3], b"----"].concat();
        let all = searched(&wire, 3, |input| framing.next(input).unwrap().map(<[u8]>::len));
        assert_eq!(all, 4 * wire.len());
    }
}
