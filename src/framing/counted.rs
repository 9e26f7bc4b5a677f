//! Frames whose length is known before the body: it is announced, or always the same.

use std::fmt;
use std::num::NonZeroUsize;

use super::{FrameError, Wrapping, refuse_longer};
use crate::parts::inbox::Input;

/// A body when nobody says otherwise: one peer with an unfinished frame holds a 64th of the default
/// [`Limits::memory`](crate::Limits::memory).
const LONGEST: usize = 1024 * 1024;

/// Each body after its length, an unsigned integer of 1, 2, 4 or 8 bytes that does not count itself.
///
/// ```text
///     U16_BE    00 05  h  e  l  l  o  │  00 00  │  00 02  o  k
///               length      body         empty
/// ```
///
/// A length beyond the longest payload is refused when the header is there, before any memory is taken for
/// it. Bodies may be empty, and each empty one is delivered.
///
/// ```
/// use tidemill::{Input, framing::{FrameError, LengthPrefix}};
///
/// let small = LengthPrefix::U32_BE.max_payload(1000);
/// let error = small.next(&mut Input::new(&[0xff, 0xff, 0xff, 0xff])).unwrap_err();
/// assert_eq!(error, FrameError::TooLong { length: 4_294_967_295, max: 1000 });
/// assert_eq!(error.to_string(), "a frame of 4294967295 bytes is longer than the 1000 allowed");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthPrefix {
    /// In bytes: 1, 2, 4 or 8.
    width: usize,
    order: Order,
    max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Big,
    Little,
}

impl LengthPrefix {
    /// One byte: bodies of up to 255 bytes.
    pub const U8: LengthPrefix = LengthPrefix::new(1, Order::Big);
    /// Two bytes, the most significant first: bodies of up to 65,535 bytes.
    pub const U16_BE: LengthPrefix = LengthPrefix::new(2, Order::Big);
    /// Two bytes, the least significant first.
    pub const U16_LE: LengthPrefix = LengthPrefix::new(2, Order::Little);
    /// Four bytes, the most significant first.
    pub const U32_BE: LengthPrefix = LengthPrefix::new(4, Order::Big);
    /// Four bytes, the least significant first.
    pub const U32_LE: LengthPrefix = LengthPrefix::new(4, Order::Little);
    /// Eight bytes, the most significant first.
    pub const U64_BE: LengthPrefix = LengthPrefix::new(8, Order::Big);
    /// Eight bytes, the least significant first.
    pub const U64_LE: LengthPrefix = LengthPrefix::new(8, Order::Little);

    const fn new(width: usize, order: Order) -> LengthPrefix {
        LengthPrefix { width, order, max: LONGEST }
    }

    /// Sets the longest body in bytes, the header not counted. Default 1 MiB. Never more than the width can
    /// say: 255 for one byte, whatever is set.
    pub fn max_payload(self, bytes: usize) -> LengthPrefix {
        LengthPrefix { max: bytes, ..self }
    }

    /// As [`Framing::next`](super::Framing::next).
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`].
    pub fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<&'a [u8]>, FrameError> {
        let Some((header, rest)) = input.bytes().split_at_checked(self.width) else { return Ok(None) };
        let length = self.read(header);
        // Compared as 64 bits, so that a length that does not fit a pointer is refused and not cut off.
        if length > self.longest() as u64 {
            return Err(FrameError::TooLong { length, max: self.longest() });
        }
        let length = length as usize;
        if rest.len() < length {
            return Ok(None);
        }
        input.take(self.width);
        Ok(Some(input.take(length)))
    }

    /// As [`Framing::inbox_limit`](super::Framing::inbox_limit).
    pub fn inbox_limit(&self) -> usize {
        self.longest().saturating_add(self.width)
    }

    /// A width of 8 bytes can say what no address space holds; the others bound the body themselves.
    fn longest(&self) -> usize {
        let sayable = u64::MAX >> (64 - 8 * self.width);
        self.max.min(usize::try_from(sayable).unwrap_or(usize::MAX))
    }

    fn read(&self, header: &[u8]) -> u64 {
        // A copy into eight bytes that are then read as one number would wait for the copy: twice the time of a frame.
        let digit = |length, &byte| length << 8 | u64::from(byte);
        match self.order {
            Order::Big => header.iter().fold(0, digit),
            Order::Little => header.iter().rev().fold(0, digit),
        }
    }

    /// Between the order on the wire and the least significant byte first.
    fn turn_around(&self, header: &mut [u8; 8]) {
        if self.order == Order::Big {
            header[..self.width].reverse();
        }
    }

    pub(super) fn wrap(&self, body: &[u8]) -> Result<Wrapping<'static>, FrameError> {
        refuse_longer(body, self.longest())?;
        let mut head = (body.len() as u64).to_le_bytes();
        self.turn_around(&mut head);
        Ok(Wrapping { head, head_len: self.width, tail: b"" })
    }
}

impl fmt::Display for LengthPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match self.order {
            // Of a single byte there is no order.
            _ if self.width == 1 => "",
            Order::Big => "be",
            Order::Little => "le",
        };
        write!(f, "u{}{order}", 8 * self.width)
    }
}

/// Bodies of one length and nothing between them.
///
/// ```
/// use tidemill::{Input, framing::Fixed};
///
/// let pairs = Fixed::new(2).unwrap();
/// let mut input = Input::new(b"abc");
/// assert_eq!(pairs.next(&mut input), Ok(Some(&b"ab"[..])));
/// assert_eq!(pairs.next(&mut input), Ok(None));
/// assert_eq!(Fixed::new(0), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    // Never 0: the frames of an empty input would have no end.
    bytes: NonZeroUsize,
}

impl Fixed {
    /// Frames of so many bytes; nothing when that is 0.
    pub fn new(bytes: usize) -> Option<Fixed> {
        NonZeroUsize::new(bytes).map(|bytes| Fixed { bytes })
    }

    /// As [`Framing::next`](super::Framing::next).
    ///
    /// # Errors
    ///
    /// None: it is a `Result` as in the other framings.
    pub fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<&'a [u8]>, FrameError> {
        let bytes = self.bytes.get();
        Ok((input.len() >= bytes).then(|| input.take(bytes)))
    }

    /// As [`Framing::inbox_limit`](super::Framing::inbox_limit).
    pub fn inbox_limit(&self) -> usize {
        self.bytes.get()
    }

    pub(super) fn wrap(&self, body: &[u8]) -> Result<Wrapping<'static>, FrameError> {
        let (length, exact) = (body.len(), self.bytes.get());
        if length == exact { Ok(Wrapping::NONE) } else { Err(FrameError::WrongLength { length, exact }) }
    }
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fixed:{}", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [LengthPrefix; 7] = [
        LengthPrefix::U8,
        LengthPrefix::U16_BE,
        LengthPrefix::U16_LE,
        LengthPrefix::U32_BE,
        LengthPrefix::U32_LE,
        LengthPrefix::U64_BE,
        LengthPrefix::U64_LE,
    ];

    fn first<'a>(framing: &LengthPrefix, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, FrameError> {
        framing.next(&mut Input::new(bytes))
    }

    #[test]
    fn the_length_stands_in_the_order_that_the_name_says() {
        let wires: [&[u8]; 7] = [
            b"\x02ok",
            b"\0\x02ok",
            b"\x02\0ok",
            b"\0\0\0\x02ok",
            b"\x02\0\0\0ok",
            b"\0\0\0\0\0\0\0\x02ok",
            b"\x02\0\0\0\0\0\0\0ok",
        ];
        for (framing, wire) in ALL.iter().zip(wires) {
            let mut out = Vec::new();
            framing.encode(b"ok", &mut out).unwrap();
            assert_eq!(out, wire, "{framing}");
            assert_eq!(first(framing, wire), Ok(Some(&b"ok"[..])), "{framing}");
        }
    }

    #[test]
    fn the_longest_body_passes_and_one_byte_more_does_not() {
        for framing in ALL.map(|framing| framing.max_payload(200)) {
            let (mut out, too_long) = (Vec::new(), Err(FrameError::TooLong { length: 201, max: 200 }));
            framing.encode(&[7; 200], &mut out).unwrap();
            assert_eq!(first(&framing, &out), Ok(Some(&[7; 200][..])), "{framing}");
            assert_eq!(out.len(), framing.inbox_limit(), "{framing}");

            assert_eq!(framing.encode(&[7; 201], &mut out), too_long.map(drop), "{framing}");
            assert_eq!(out.len(), framing.inbox_limit(), "{framing}: something was appended");
            let generous = framing.max_payload(201);
            out.clear();
            generous.encode(&[7; 201], &mut out).unwrap();
            assert_eq!(first(&framing, &out), too_long, "{framing}");
        }
    }

    #[test]
    fn an_announced_length_is_refused_before_anything_else_has_arrived() {
        for framing in ALL {
            let framing = framing.max_payload(254);
            let max = u64::MAX >> (64 - 8 * framing.width);
            let refused = Err(FrameError::TooLong { length: max, max: 254 });
            assert_eq!(first(&framing, &[0xff; 8][..framing.width]), refused, "{framing}");
            assert_eq!(first(&framing, &[0xff; 8][..framing.width - 1]), Ok(None), "{framing}");
        }
    }

    #[test]
    fn no_length_of_64_bits_overflows_whatever_is_allowed() {
        for framing in [LengthPrefix::U64_BE, LengthPrefix::U64_LE] {
            let refused = FrameError::TooLong { length: u64::MAX, max: LONGEST };
            assert_eq!(first(&framing, &[0xff; 100]), Err(refused));
            // With nothing refused, such a frame is not complete, and never will be.
            let endless = framing.max_payload(usize::MAX);
            let fits = usize::BITS == 64;
            assert_eq!(first(&endless, &[0xff; 100]).is_ok(), fits);
            assert_eq!(endless.inbox_limit(), usize::MAX);
        }
    }

    #[test]
    fn a_body_that_the_width_cannot_say_is_refused_and_never_cut() {
        for (framing, sayable) in [(LengthPrefix::U8, 255), (LengthPrefix::U16_BE, 65_535)] {
            for framing in [framing, framing.max_payload(usize::MAX)] {
                let mut out = Vec::new();
                framing.encode(&vec![1; sayable], &mut out).unwrap();
                assert_eq!(first(&framing, &out).unwrap().map(<[u8]>::len), Some(sayable));
                assert_eq!(framing.inbox_limit(), out.len());

                out.clear();
                let refused = FrameError::TooLong { length: sayable as u64 + 1, max: sayable };
                assert_eq!(framing.encode(&vec![1; sayable + 1], &mut out), Err(refused));
                assert!(out.is_empty());
            }
        }
    }

    #[test]
    fn each_empty_frame_is_delivered_once() {
        let mut input = Input::new(&[0, 0, 0, 0, 0]);
        for _ in 0..2 {
            assert_eq!(LengthPrefix::U16_LE.next(&mut input), Ok(Some(&b""[..])));
        }
        assert_eq!(LengthPrefix::U16_LE.next(&mut input), Ok(None));
        assert_eq!(input.len(), 1, "half a header was taken");
    }

    #[test]
    fn a_fixed_frame_has_its_length_and_no_other() {
        let fixed = Fixed::new(4).unwrap();
        let mut out = Vec::new();
        for wrong in [&b""[..], b"abc", b"abcde"] {
            let refused = FrameError::WrongLength { length: wrong.len(), exact: 4 };
            assert_eq!(fixed.encode(wrong, &mut out), Err(refused));
        }
        assert!(out.is_empty());
        fixed.encode(b"abcd", &mut out).unwrap();
        assert_eq!(out, b"abcd");
    }
}
