//! Frames whose length is a variable-length integer (varint), as of protobuf and MQTT.

use std::fmt;

use super::counted::LONGEST;
use super::{FrameError, Wrapping, refuse_longer};
use crate::parts::inbox::Input;

/// Frames with a varint as length: seven bits in each byte, the least significant first; the top bit says that another
/// byte follows.
///
/// ```text
///     300    0b1010_1100  0b0000_0010  body of 300 bytes
///              └ low 7 bits  └ 2 × 128
/// ```
///
/// Only the shortest encoding of a length is accepted. MQTT requires that (1.5.5), and a length with two encodings can
/// be read in two ways by two programs.
///
/// # Examples
///
/// ```
/// use tidemill::{Input, framing::Varint};
///
/// const MESSAGES: Varint = Varint::U32.max_payload(64 * 1024);
/// let mut wire = Vec::new();
/// MESSAGES.encode(&[7; 300], &mut wire).unwrap();
/// assert_eq!(wire[..2], [0xac, 0x02]);
/// assert_eq!(MESSAGES.next(&mut Input::new(&wire)), Ok(Some(&[7; 300][..])));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Varint {
    /// The size of the length, in bytes at most.
    width: usize,
    max: usize,
}

/// A varint of 64 bits has ten bytes at most.
const WIDTH_MAX: usize = 10;

impl Varint {
    /// Up to four bytes: bodies of up to 268,435,455 bytes, as in MQTT.
    pub const U28: Varint = Varint { width: 4, max: LONGEST };
    /// Up to five bytes: bodies of up to 4,294,967,295 bytes, as in delimited protobuf messages.
    pub const U32: Varint = Varint { width: 5, max: LONGEST };
    /// Up to ten bytes.
    pub const U64: Varint = Varint { width: WIDTH_MAX, max: LONGEST };

    /// Sets the maximum length of a body in bytes, without the length itself. Default 1 MiB.
    pub const fn max_payload(self, bytes: usize) -> Varint {
        Varint { max: bytes, ..self }
    }

    /// As [`Framing::next`](super::Framing::next).
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`], [`FrameError::BadVarint`].
    pub fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<&'a [u8]>, FrameError> {
        let Some((width, length)) = self.header(input.bytes())? else { return Ok(None) };
        Ok(input.try_take(width.saturating_add(length)).map(|frame| &frame[width..]))
    }

    /// As [`Framing::inbox_limit`](super::Framing::inbox_limit).
    pub fn inbox_limit(&self) -> usize {
        self.longest().saturating_add(self.width)
    }

    /// The sizes of the length and of the body, if the whole length is there.
    pub(super) fn header(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
        let bad = FrameError::BadVarint { max: self.width };
        let mut length = 0;
        for (at, &byte) in bytes.iter().enumerate().take(self.width) {
            let (group, shift) = (u64::from(byte & 0x7f), 7 * at);
            if group << shift >> shift != group {
                return Err(bad); // The tenth byte has room for one bit.
            }
            length |= group << shift;
            if byte & 0x80 != 0 {
                continue;
            }
            let is_shortest = byte != 0 || at == 0;
            return match is_shortest {
                false => Err(bad),
                // Compared in 64 bits: a conversion to `usize` first could cut the length off.
                true if length > self.longest() as u64 => {
                    Err(FrameError::TooLong { length, max: self.longest() })
                }
                true => Ok(Some((at + 1, length as usize))),
            };
        }
        if bytes.len() < self.width { Ok(None) } else { Err(bad) }
    }

    /// The maximum length of a body: the configured one, or the greatest that the length can express.
    fn longest(&self) -> usize {
        let sayable = match self.width {
            5 => u64::from(u32::MAX),
            width if 7 * width < 64 => (1 << (7 * width)) - 1,
            _ => u64::MAX,
        };
        self.max.min(usize::try_from(sayable).unwrap_or(usize::MAX))
    }

    pub(super) fn wrap(&self, body: &[u8]) -> Result<Wrapping<'static>, FrameError> {
        refuse_longer(body, self.longest())?;
        let (mut left, mut wrapping) = (body.len() as u64, Wrapping::NONE);
        loop {
            let more = left > 0x7f;
            wrapping.head[wrapping.head_len] = (left & 0x7f) as u8 | u8::from(more) << 7;
            wrapping.head_len += 1;
            left >>= 7;
            if !more {
                return Ok(wrapping);
            }
        }
    }
}

impl fmt::Display for Varint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.width {
            4 => "varint28",
            5 => "varint32",
            _ => "varint64",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::Framing;

    fn first(framing: Varint, bytes: &[u8]) -> Result<Option<&[u8]>, FrameError> {
        framing.next(&mut Input::new(bytes))
    }

    #[test]
    fn the_three_widths_have_the_names_by_which_they_are_asked_for() {
        for (name, framing) in
            [("varint28", Varint::U28), ("varint32", Varint::U32), ("varint64", Varint::U64)]
        {
            assert_eq!((name.parse(), framing.to_string()), (Ok(Framing::Varint(framing)), name.to_string()));
        }
    }

    #[test]
    fn lengths_have_the_bytes_that_the_specifications_give() {
        // MQTT 5, table 1-1; protobuf, "Base 128 Varints".
        for (length, head) in [
            (0, &[0][..]),
            (127, &[0x7f]),
            (128, &[0x80, 0x01]),
            (150, &[0x96, 0x01]),
            (16_383, &[0xff, 0x7f]),
            (16_384, &[0x80, 0x80, 0x01]),
            (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
        ] {
            let (framing, body) = (Varint::U28.max_payload(usize::MAX), vec![1; length]);
            let mut wire = Vec::new();
            framing.encode(&body, &mut wire).unwrap();
            assert_eq!(&wire[..head.len()], head, "{length}");
            assert_eq!(wire.len(), head.len() + length);
            assert_eq!(first(framing, &wire), Ok(Some(&body[..])));
            assert_eq!(first(framing, &wire[..wire.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn a_length_in_more_bytes_than_needed_is_refused() {
        for wire in [&[0x80, 0][..], &[0x85, 0x80, 0], &[0xff, 0x80, 0x80, 0]] {
            for framing in [Varint::U28, Varint::U32, Varint::U64] {
                assert!(matches!(first(framing, wire), Err(FrameError::BadVarint { .. })), "{wire:x?}");
            }
        }
        assert_eq!(first(Varint::U28, &[0]), Ok(Some(&b""[..])), "zero has one byte");
    }

    #[test]
    fn an_endless_length_is_refused_at_its_last_byte() {
        for (framing, width) in [(Varint::U28, 4), (Varint::U32, 5), (Varint::U64, 10)] {
            let endless = [0xff; 20];
            assert_eq!(first(framing, &endless[..width - 1]), Ok(None), "{framing}");
            assert_eq!(
                first(framing, &endless[..width]),
                Err(FrameError::BadVarint { max: width }),
                "{framing}"
            );
        }
    }

    #[test]
    fn no_length_overflows() {
        let mut wire = [0xff; 10];
        wire[9] = 1;
        let endless = Varint::U64.max_payload(usize::MAX);
        assert_eq!(first(Varint::U64, &wire), Err(FrameError::TooLong { length: u64::MAX, max: LONGEST }));
        assert_eq!(first(endless, &wire), Ok(None), "of such a frame, more is always missing");
        assert_eq!(endless.inbox_limit(), usize::MAX);
        wire[9] = 2;
        assert_eq!(first(endless, &wire), Err(FrameError::BadVarint { max: 10 }), "bit 65");
        let beyond = [0xff, 0xff, 0xff, 0xff, 0x1f];
        let refused = FrameError::TooLong { length: 0x1_ffff_ffff, max: u32::MAX as usize };
        assert_eq!(first(Varint::U32.max_payload(usize::MAX), &beyond), Err(refused));
    }

    #[test]
    fn a_body_too_long_for_the_length_is_refused() {
        let framing = Varint::U28.max_payload(usize::MAX);
        assert_eq!(framing.longest(), 268_435_455);
        let small = Varint::U28.max_payload(3);
        let mut wire = Vec::new();
        assert_eq!(small.encode(b"four", &mut wire), Err(FrameError::TooLong { length: 4, max: 3 }));
        assert!(wire.is_empty());
        assert_eq!(first(small, b"\x04four"), Err(FrameError::TooLong { length: 4, max: 3 }));
    }
}
