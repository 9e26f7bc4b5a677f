//! Frames with some bytes in front of their length: the type of a message, or flags.

use super::counted::LengthPrefix;
use super::varint::Varint;
use super::{FrameError, Wrapping};
use crate::connection::socket::Socket;
use crate::parts::inbox::Input;

/// Frames with a tag of fixed size in front of the length: [`LengthPrefix::behind`] and [`Varint::behind`] make one.
///
/// ```text
///     Varint::U28.behind(1)                              an MQTT packet
///         30  0a  0 3 a / b  h e l l o
///        tag  length         body
///
///     LengthPrefix::U32_BE.counts_itself(true).behind(1)     a PostgreSQL message
///         51  00 00 00 0d  S E L E C T   1 \0
///        tag  length       body
/// ```
///
/// # Examples
///
/// ```
/// use tidemill::{Input, framing::{LengthPrefix, Tagged}};
///
/// const POSTGRES: Tagged = LengthPrefix::U32_BE.counts_itself(true).behind(1);
/// let mut wire = Vec::new();
/// POSTGRES.encode(b"Q", b"SELECT 1\0", &mut wire).unwrap();
/// assert_eq!(wire, b"Q\0\0\0\x0dSELECT 1\0");
/// assert_eq!(POSTGRES.next(&mut Input::new(&wire)), Ok(Some((&b"Q"[..], &b"SELECT 1\0"[..]))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged {
    tag: usize,
    length: Length,
}

/// The tag and the body of a frame.
pub type TagAndBody<'a> = (&'a [u8], &'a [u8]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Prefix(LengthPrefix),
    Varint(Varint),
}

impl LengthPrefix {
    /// Frames with `tag` bytes in front of this length. The length does not count them.
    pub const fn behind(self, tag: usize) -> Tagged {
        Tagged { tag, length: Length::Prefix(self) }
    }
}

impl Varint {
    /// Frames with `tag` bytes in front of this length. The length does not count them.
    pub const fn behind(self, tag: usize) -> Tagged {
        Tagged { tag, length: Length::Varint(self) }
    }
}

impl Tagged {
    /// Takes the next frame and returns its tag and its body. `None`, and nothing is taken, if it is not complete yet.
    ///
    /// # Errors
    ///
    /// As those of the length. Nothing is taken.
    pub fn next<'a>(&self, input: &mut Input<'a>) -> Result<Option<TagAndBody<'a>>, FrameError> {
        let Some(rest) = input.bytes().get(self.tag..) else { return Ok(None) };
        let header = match &self.length {
            Length::Prefix(length) => length.header(rest)?,
            Length::Varint(length) => length.header(rest)?,
        };
        let Some((width, length)) = header else { return Ok(None) };
        let frame = input.try_take(self.tag.saturating_add(width).saturating_add(length));
        Ok(frame.map(|frame| (&frame[..self.tag], &frame[self.tag + width..])))
    }

    /// As [`Framing::inbox_limit`](super::Framing::inbox_limit).
    pub fn inbox_limit(&self) -> usize {
        self.tag.saturating_add(match &self.length {
            Length::Prefix(length) => length.inbox_limit(),
            Length::Varint(length) => length.inbox_limit(),
        })
    }

    /// Sends one frame.
    ///
    /// # Errors
    ///
    /// When the receiver would not get exactly this frame: see [`FrameError`]. Nothing is sent.
    pub fn send(&self, socket: &mut Socket<'_>, tag: &[u8], body: &[u8]) -> Result<(), FrameError> {
        let wrapping = self.wrap(tag, body)?;
        socket.send(tag);
        wrapping.around(body, |part| socket.send(part));
        Ok(())
    }

    /// Appends one frame to `out`, without a [`Socket`].
    ///
    /// # Errors
    ///
    /// As [`send`](Tagged::send). Nothing is appended.
    pub fn encode(&self, tag: &[u8], body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let wrapping = self.wrap(tag, body)?;
        out.extend_from_slice(tag);
        wrapping.around(body, |part| out.extend_from_slice(part));
        Ok(())
    }

    fn wrap(&self, tag: &[u8], body: &[u8]) -> Result<Wrapping<'static>, FrameError> {
        if tag.len() != self.tag {
            return Err(FrameError::WrongLength { length: tag.len(), exact: self.tag });
        }
        match &self.length {
            Length::Prefix(length) => length.wrap(body),
            Length::Varint(length) => length.wrap(body),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> impl Strategy<Value = Tagged> {
        let prefix = prop::sample::select(vec![LengthPrefix::U8, LengthPrefix::U16_LE, LengthPrefix::U24_BE]);
        let prefixes = (prefix, any::<bool>(), 0..5usize)
            .prop_map(|(prefix, itself, tag)| prefix.counts_itself(itself).behind(tag));
        prop_oneof![prefixes, (0..5usize).prop_map(|tag| Varint::U28.behind(tag))]
    }

    #[test]
    fn a_tag_of_another_size_is_refused() {
        let mut out = Vec::new();
        let refused = Err(FrameError::WrongLength { length: 1, exact: 2 });
        assert_eq!(LengthPrefix::U8.behind(2).encode(b"x", b"body", &mut out), refused);
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn frames_come_as_they_were_sent_wherever_they_are_cut(
            framing in all(), frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 5..200), 0..6),
            tail in 0..9usize,
        ) {
            let mut wire = Vec::new();
            for frame in &frames {
                framing.encode(&frame[..framing.tag], &frame[framing.tag..], &mut wire).unwrap();
            }
            let whole = wire.len();
            framing.encode(&vec![1; framing.tag], b"incomplete", &mut wire).unwrap();
            wire.truncate(whole + tail);
            let mut input = Input::new(&wire);
            for frame in &frames {
                prop_assert_eq!(framing.next(&mut input), Ok(Some(frame.split_at(framing.tag))));
            }
            prop_assert_eq!(framing.next(&mut input), Ok(None));
            prop_assert_eq!(input.len(), wire.len() - whole, "of an incomplete frame nothing is taken");
        }

        #[test]
        fn no_bytes_cause_a_panic(framing in all(), wire in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut input = Input::new(&wire);
            while let Ok(Some(_)) = framing.next(&mut input) {}
            prop_assert!(framing.inbox_limit() > framing.tag);
        }
    }
}
