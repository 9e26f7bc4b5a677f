//! Frames whose length is known before the body: by a length prefix, or because it is fixed.

use std::fmt;
use std::num::NonZeroUsize;

use super::{FrameError, HEAD_MAX, Wrapping, refuse_longer};
use crate::parts::inbox::Input;

/// The default maximum of a body: a peer with an unfinished frame holds a 64th of the default
/// [`Limits::memory`](crate::Limits::memory).
pub(super) const LONGEST: usize = 1024 * 1024;

/// Length-prefixed frames: an unsigned integer of 1, 2, 3, 4 or 8 bytes with the length of the body, then the body.
///
/// ```text
///     U16_BE    00 05  h  e  l  l  o  │  00 00  │  00 02  o  k
///               length      body         empty
/// ```
///
/// A length above the maximum is an error as soon as the prefix has arrived; memory is never reserved by an announced
/// length. Bodies may be empty, and empty ones are delivered.
///
/// # Examples
///
/// ```
/// use tidemill::{Input, framing::{FrameError, LengthPrefix}};
///
/// let small = LengthPrefix::U32_BE.max_payload(1000);
/// let error = small.next(&mut Input::new(&[0xff, 0xff, 0xff, 0xff])).unwrap_err();
/// assert_eq!(error, FrameError::TooLong { length: 4_294_967_295, max: 1000 });
/// assert_eq!(error.to_string(), "a frame of 4294967295 bytes is longer than the 1000 allowed");
///
/// // Everything can be set in a constant.
/// const PACKETS: LengthPrefix = LengthPrefix::U24_LE.max_payload(64 * 1024);
/// # assert_eq!(PACKETS.inbox_limit(), 64 * 1024 + 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthPrefix {
    /// The size of the length, in bytes: 1, 2, 3, 4 or 8.
    width: usize,
    order: Order,
    /// Whether the length counts its own bytes, too.
    counts_itself: bool,
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
    /// Three bytes, the most significant first: bodies of up to 16,777,215 bytes, as in TLS and HTTP/2.
    pub const U24_BE: LengthPrefix = LengthPrefix::new(3, Order::Big);
    /// Three bytes, the least significant first, as in MySQL.
    pub const U24_LE: LengthPrefix = LengthPrefix::new(3, Order::Little);
    /// Four bytes, the most significant first.
    pub const U32_BE: LengthPrefix = LengthPrefix::new(4, Order::Big);
    /// Four bytes, the least significant first.
    pub const U32_LE: LengthPrefix = LengthPrefix::new(4, Order::Little);
    /// Eight bytes, the most significant first.
    pub const U64_BE: LengthPrefix = LengthPrefix::new(8, Order::Big);
    /// Eight bytes, the least significant first.
    pub const U64_LE: LengthPrefix = LengthPrefix::new(8, Order::Little);

    const fn new(width: usize, order: Order) -> LengthPrefix {
        LengthPrefix { width, order, counts_itself: false, max: LONGEST }
    }

    /// Sets the maximum length of a body in bytes, without the prefix. Default 1 MiB, or what the prefix can express if
    /// that is less (255 for one byte).
    pub const fn max_payload(self, bytes: usize) -> LengthPrefix {
        LengthPrefix { max: bytes, ..self }
    }

    /// Sets whether the length counts its own bytes, as in PostgreSQL. Off by default.
    pub const fn counts_itself(self, on: bool) -> LengthPrefix {
        LengthPrefix { counts_itself: on, ..self }
    }

    /// As [`Framing::next`](super::Framing::next).
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`]; if the length counts itself, also [`FrameError::TooShort`].
    pub fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<&'a [u8]>, FrameError> {
        let Some((width, length)) = self.header(input.bytes())? else { return Ok(None) };
        // Both sizes are below the limits that `header` has checked, and the sum of two is compared without overflow.
        if input.len() - width < length {
            return Ok(None);
        }
        input.take(width);
        Ok(Some(input.take(length)))
    }

    /// The sizes of the length and of the body, if the whole length is there.
    #[inline]
    pub(super) fn header(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
        let Some(header) = bytes.get(..self.width) else { return Ok(None) };
        let counted = self.read(header);
        let Some(length) = counted.checked_sub(self.counted_width() as u64) else {
            return Err(FrameError::TooShort { length: counted, min: self.width });
        };
        // Compared in 64 bits: on a 32-bit target, a conversion to `usize` first would cut the length off.
        if length > self.longest() as u64 {
            return Err(FrameError::TooLong { length, max: self.longest() });
        }
        Ok(Some((self.width, length as usize)))
    }

    /// As [`Framing::inbox_limit`](super::Framing::inbox_limit).
    pub fn inbox_limit(&self) -> usize {
        self.longest().saturating_add(self.width)
    }

    /// The maximum length of a body: the configured one, or the greatest that the prefix can express.
    fn longest(&self) -> usize {
        let sayable = u64::MAX >> (64 - 8 * self.width);
        self.max.min(usize::try_from(sayable).unwrap_or(usize::MAX) - self.counted_width())
    }

    /// How much the length is greater than the body.
    fn counted_width(&self) -> usize {
        if self.counts_itself { self.width } else { 0 }
    }

    fn read(&self, header: &[u8]) -> u64 {
        // Byte by byte. Copying into an array of eight bytes and reading that as one number took twice as long per
        // frame, because the read has to wait for the copy.
        let digit = |length, &byte| length << 8 | u64::from(byte);
        match self.order {
            Order::Big => header.iter().fold(0, digit),
            Order::Little => header.iter().rev().fold(0, digit),
        }
    }

    /// Converts between the byte order on the wire and little-endian.
    fn turn_around(&self, header: &mut [u8]) {
        if self.order == Order::Big {
            header[..self.width].reverse();
        }
    }

    pub(super) fn wrap(&self, body: &[u8]) -> Result<Wrapping<'static>, FrameError> {
        refuse_longer(body, self.longest())?;
        let mut head = [0; HEAD_MAX];
        head[..8].copy_from_slice(&((body.len() + self.counted_width()) as u64).to_le_bytes());
        self.turn_around(&mut head);
        Ok(Wrapping { head, head_len: self.width, tail: b"" })
    }
}

impl fmt::Display for LengthPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match self.order {
            // A single byte has no byte order.
            _ if self.width == 1 => "",
            Order::Big => "be",
            Order::Little => "le",
        };
        let itself = if self.counts_itself { ":self" } else { "" };
        write!(f, "u{}{order}{itself}", 8 * self.width)
    }
}

/// Frames of a fixed length, without header or delimiter.
///
/// # Examples
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
    // Not 0: even an empty input would then contain infinitely many frames.
    bytes: NonZeroUsize,
}

impl Fixed {
    /// Frames of `bytes` bytes. `None` if that is 0.
    pub const fn new(bytes: usize) -> Option<Fixed> {
        match NonZeroUsize::new(bytes) {
            Some(bytes) => Some(Fixed { bytes }),
            None => None,
        }
    }

    /// As [`Framing::next`](super::Framing::next).
    ///
    /// # Errors
    ///
    /// Never. It is a `Result` as in the other framings.
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

    const ALL: [LengthPrefix; 9] = [
        LengthPrefix::U8,
        LengthPrefix::U16_BE,
        LengthPrefix::U16_LE,
        LengthPrefix::U24_BE,
        LengthPrefix::U24_LE,
        LengthPrefix::U32_BE,
        LengthPrefix::U32_LE,
        LengthPrefix::U64_BE,
        LengthPrefix::U64_LE,
    ];

    fn first<'a>(framing: &LengthPrefix, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, FrameError> {
        framing.next(&mut Input::new(bytes))
    }

    #[test]
    fn the_length_has_the_byte_order_of_its_name() {
        let wires: [&[u8]; 9] = [
            b"\x02ok",
            b"\0\x02ok",
            b"\x02\0ok",
            b"\0\0\x02ok",
            b"\x02\0\0ok",
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
    fn a_body_of_the_maximum_length_passes_and_one_byte_more_does_not() {
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
    fn an_announced_length_above_the_maximum_is_refused_before_the_body_arrives() {
        for framing in ALL {
            let framing = framing.max_payload(254);
            let max = u64::MAX >> (64 - 8 * framing.width);
            let refused = Err(FrameError::TooLong { length: max, max: 254 });
            assert_eq!(first(&framing, &[0xff; 8][..framing.width]), refused, "{framing}");
            assert_eq!(first(&framing, &[0xff; 8][..framing.width - 1]), Ok(None), "{framing}");
        }
    }

    #[test]
    fn no_64_bit_length_overflows_whatever_the_maximum_is() {
        for framing in [LengthPrefix::U64_BE, LengthPrefix::U64_LE] {
            let refused = FrameError::TooLong { length: u64::MAX, max: LONGEST };
            assert_eq!(first(&framing, &[0xff; 100]), Err(refused));
            // Without a maximum, such a frame is never complete.
            let endless = framing.max_payload(usize::MAX);
            let fits = usize::BITS == 64;
            assert_eq!(first(&endless, &[0xff; 100]).is_ok(), fits);
            assert_eq!(endless.inbox_limit(), usize::MAX);
        }
    }

    #[test]
    fn a_body_too_long_for_the_prefix_is_refused_and_never_truncated() {
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
    fn a_length_that_counts_itself_is_never_less_than_itself() {
        for framing in ALL.map(|framing| framing.counts_itself(true).max_payload(200)) {
            for body in [&b""[..], b"body", &[7; 200]] {
                let mut out = Vec::new();
                framing.encode(body, &mut out).unwrap();
                assert_eq!(framing.read(&out[..framing.width]), out.len() as u64, "{framing}");
                assert_eq!(first(&framing, &out), Ok(Some(body)), "{framing}");
            }
            let refused = Err(FrameError::TooShort { length: 0, min: framing.width });
            assert_eq!(first(&framing, &[0; 8]), refused, "{framing}: a length of zero would never end");
        }
        let (tiny, mut out) = (LengthPrefix::U8.counts_itself(true), Vec::new());
        assert_eq!(tiny.encode(&[1; 255], &mut out), Err(FrameError::TooLong { length: 255, max: 254 }));
        let endless = LengthPrefix::U64_BE.counts_itself(true).max_payload(usize::MAX);
        assert_eq!(first(&endless, &[0xff; 100]), Ok(None));
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
    fn a_body_of_any_other_than_the_fixed_length_is_refused() {
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
