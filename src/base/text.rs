//! Makes bytes of a peer safe to show in logs and on terminals.
//!
//! A terminal executes control sequences. Unfiltered bytes of a peer can clear the screen, set the window title or
//! inject input (escape sequences), forge a second log line (line feeds), overwrite the first one (carriage returns),
//! or show a name backwards (bidirectional controls). Apache (CVE-2013-1862), OSSEC (CVE-2020-8445) and BusyBox's
//! netstat (CVE-2024-58251) had this fault. So bytes of a peer are written only through one of these:
//!
//! | output | use | a control character |
//! | --- | --- | --- |
//! | a log line | [`Escaped`] | is written as an escape, and can be decoded again |
//! | a line for the terminals of other peers | [`printable`] | is removed |
//! | the user's own terminal | [`Terminal`] (a stream), [`ForTerminal`] | is escaped, except line ends and tabs |
//!
//! A control character here is a C0 control, DEL, a C1 control (U+0080 to U+009F: some terminals treat U+009B as
//! `ESC [`), a bidirectional control (U+061C, U+200E, U+200F, U+202A to U+202E, U+2066 to U+2069), or a line or
//! paragraph separator (U+2028, U+2029). Letters of right-to-left scripts are not changed.

use std::borrow::Cow;
use std::fmt;

/// Formats bytes of a peer for a log: always one line, and different bytes always give a different text.
///
/// | bytes | written as |
/// | --- | --- |
/// | C0 controls (tab and line ends too), DEL, C1 controls, bytes that are not UTF-8 | `\xNN`, one for each byte |
/// | bidirectional controls, U+2028, U+2029 | `\u{202e}` |
/// | a backslash | `\\` |
/// | everything else | unchanged |
///
/// # Put it last on a line
///
/// Spaces and quotes are not escaped, so a peer could write text that looks like the next field of the line.
///
/// # Examples
///
/// ```
/// use tidemill::text::Escaped;
///
/// assert_eq!(Escaped(b"hi\r\n\x1b[2J").to_string(), r"hi\x0d\x0a\x1b[2J");
/// assert_eq!(Escaped("gr\u{fc}n\u{202e}gpj.exe".as_bytes()).to_string(), "gr\u{fc}n\\u{202e}gpj.exe");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(
    /// What the peer sent.
    pub &'a [u8],
);

/// Formats bytes of a peer for the user's terminal: as [`Escaped`], but `\n`, `\t`, a `\r` directly before a `\n`, and
/// backslashes are not escaped: JSON, paths and regular expressions can be read and copied as they are. So an escape
/// cannot be told from the same characters sent by the peer.
///
/// For a complete text. A piece of a stream may end within a character: use [`Terminal`] for streams.
///
/// # Examples
///
/// ```
/// use tidemill::text::ForTerminal;
///
/// assert_eq!(ForTerminal(b"one\r\n\ttwo\n99%\rwiped").to_string(), "one\r\n\ttwo\n99%\\x0dwiped");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ForTerminal<'a>(
    /// What the peer sent.
    pub &'a [u8],
);

/// [`ForTerminal`] for a stream: the output does not depend on how the stream is cut into pieces.
///
/// ```text
///     fed before │ held │ fed now                    │ held │
///         … 'a'  │ E2 82│ AC  'b'  'c'  …            │ F0 9F│    a character, or a line end, that may
///                └───────── is shown now ────────────┘           not be complete is shown with what follows
/// ```
///
/// It holds at most three bytes back: an incomplete character, or a `\r` that a `\n` may follow. A prompt without a
/// line end is shown at once.
///
/// # Examples
///
/// ```
/// use tidemill::text::Terminal;
///
/// let (mut terminal, mut shown) = (Terminal::default(), String::new());
/// terminal.feed(b"5 \xe2\x82", &mut shown);
/// assert_eq!(shown, "5 ");
/// terminal.feed(b"\xac\xe2", &mut shown);
/// terminal.finish(&mut shown);
/// assert_eq!(shown, "5 \u{20ac}\\xe2");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Terminal {
    /// One byte longer than what is held between calls: the last byte of a character is added before it is shown.
    bytes: [u8; HELD_MAX + 1],
    held: usize,
}

/// Bytes held back at most: a character of UTF-8 has at most four bytes, so an incomplete one has at most three.
const HELD_MAX: usize = 3;

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(self.0, f, |_, _| false)
    }
}

impl fmt::Display for ForTerminal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(self.0, f, is_layout)
    }
}

impl Terminal {
    /// Appends to `out` all that can be shown of the bytes fed so far.
    pub fn feed(&mut self, bytes: &[u8], out: &mut String) {
        let mut rest = bytes;
        while self.held > 0 {
            let Some((&next, after)) = rest.split_first() else { return };
            rest = after;
            self.bytes[self.held] = next;
            self.held += 1;
            // The held bytes may turn out to be invalid, and the newest of them to begin another character.
            let joined = self.bytes;
            self.show(&joined[..self.held], out);
        }
        self.show(rest, out);
    }

    /// Appends the bytes that are still held back: the stream has ended.
    pub fn finish(&mut self, out: &mut String) {
        let last = self.bytes;
        append(&last[..self.held], out);
        self.held = 0;
    }

    /// Appends `bytes`, and holds back an incomplete end.
    fn show(&mut self, bytes: &[u8], out: &mut String) {
        let (whole, tail) = bytes.split_at(bytes.len() - incomplete(bytes));
        append(whole, out);
        self.bytes[..tail.len()].copy_from_slice(tail);
        self.held = tail.len();
    }
}

/// Removes control characters other than tab from a line of a peer, to show it on terminals of other peers.
///
/// Bytes that are not UTF-8 become U+FFFD. Line ends are removed too, so the result is one line. If nothing changes,
/// nothing is copied. Of an escape sequence, only the control character is removed: of `ESC [ 31 m`, the harmless text
/// `[31m` remains.
///
/// # Examples
///
/// ```
/// use tidemill::text::printable;
///
/// assert_eq!(printable(b"\x1b[31mred\x07\tmeat\r"), "[31mred\tmeat");
/// assert_eq!(printable("\u{202e}\u{5e9}\u{5dc}\u{5d5}\u{5dd}".as_bytes()), "\u{5e9}\u{5dc}\u{5d5}\u{5dd}");
/// ```
pub fn printable(line: &[u8]) -> Cow<'_, str> {
    let is_dropped = |c: char| c != '\t' && is_control(c);
    let text = String::from_utf8_lossy(line);
    if !text.contains(is_dropped) {
        return text;
    }
    let mut kept = text.into_owned();
    kept.retain(|c| !is_dropped(c));
    Cow::Owned(kept)
}

/// Whether a character is a control character in the sense of this module.
fn is_control(c: char) -> bool {
    // `char::is_control` is the Unicode category Cc: C0, DEL and C1, and nothing else.
    c.is_control() || is_invisible_order(c)
}

/// Whether a character invisibly changes the order or the lines in which other characters are shown.
fn is_invisible_order(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character is allowed on the user's terminal: a line end or a tab. `after` is the text behind it.
fn is_layout(c: char, after: &str) -> bool {
    matches!(c, '\n' | '\t' | '\\') || (c == '\r' && after.starts_with('\n'))
}

/// Writes `bytes`, with controls and backslashes as escapes, except for those that `passes` allows.
fn escape(bytes: &[u8], out: &mut impl fmt::Write, passes: impl Fn(char, &str) -> bool) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        let text = chunk.valid();
        let mut plain = 0;
        for (at, c) in text.char_indices() {
            let after = &text[at + c.len_utf8()..];
            if !(c == '\\' || is_control(c)) || passes(c, after) {
                continue;
            }
            out.write_str(&text[plain..at])?;
            plain = text.len() - after.len();
            match c {
                '\\' => out.write_str(r"\\")?,
                _ if is_invisible_order(c) => write!(out, "\\u{{{:x}}}", u32::from(c))?,
                // The bytes of the character and not its number: U+009B and a lone byte 9B must not look the same.
                _ => spell(&text.as_bytes()[at..plain], out)?,
            }
        }
        out.write_str(&text[plain..])?;
        spell(chunk.invalid(), out)?;
    }
    Ok(())
}

fn spell(bytes: &[u8], out: &mut impl fmt::Write) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "\\x{byte:02x}"))
}

fn append(bytes: &[u8], out: &mut String) {
    // Writing to a `String` never fails.
    let _ = escape(bytes, out, is_layout);
}

/// How many bytes at the end cannot be shown before more follow: an incomplete character, or a `\r`.
fn incomplete(bytes: &[u8]) -> usize {
    if bytes.last() == Some(&b'\r') {
        return 1;
    }
    let longest = bytes.len().min(HELD_MAX);
    let is_begun = |n: &usize| match std::str::from_utf8(&bytes[bytes.len() - n..]) {
        Ok(_) => false,
        Err(error) => error.valid_up_to() == 0 && error.error_len().is_none(),
    };
    (1..=longest).find(is_begun).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every character that the functions must not let through; listed by number, independently of the code under test.
    fn is_dangerous(c: char) -> bool {
        let n = u32::from(c);
        n < 0x20 || (0x7f..=0x9f).contains(&n) || ORDER.contains(&n)
    }

    const ORDER: [u32; 14] = [
        0x61c, 0x200e, 0x200f, 0x2028, 0x2029, 0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067,
        0x2068, 0x2069,
    ];

    /// Decodes the output of [`Escaped`].
    fn unescape(text: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), text);
        while let Some((before, escape)) = rest.split_once('\\') {
            bytes.extend_from_slice(before.as_bytes());
            rest = match escape.as_bytes()[0] {
                b'\\' => {
                    bytes.push(b'\\');
                    &escape[1..]
                }
                b'x' => {
                    bytes.push(u8::from_str_radix(&escape[1..3], 16).unwrap());
                    &escape[3..]
                }
                _ => {
                    let (number, after) = escape.strip_prefix("u{").unwrap().split_once('}').unwrap();
                    let c = char::from_u32(u32::from_str_radix(number, 16).unwrap()).unwrap();
                    bytes.extend_from_slice(c.to_string().as_bytes());
                    after
                }
            };
        }
        bytes.extend_from_slice(rest.as_bytes());
        bytes
    }

    fn shown(parts: &[&[u8]]) -> String {
        let (mut terminal, mut out) = (Terminal::default(), String::new());
        for part in parts {
            terminal.feed(part, &mut out);
            assert!(terminal.held <= HELD_MAX);
        }
        terminal.finish(&mut out);
        assert_eq!(terminal.held, 0);
        out
    }

    fn check_all(bytes: &[u8]) {
        let escaped = Escaped(bytes).to_string();
        assert!(!escaped.contains(is_dangerous), "{bytes:02x?} became {escaped:?}");
        assert_eq!(unescape(&escaped), bytes, "{escaped:?} cannot be read back");

        let line = printable(bytes);
        assert!(!line.contains(|c| c != '\t' && is_dangerous(c)), "{bytes:02x?} became {line:?}");
        assert_eq!(printable(line.as_bytes()), line, "twice is not once");
        assert!(matches!(printable(line.as_bytes()), Cow::Borrowed(_)), "{line:?} was copied for nothing");

        let screen = ForTerminal(bytes).to_string();
        let without_layout = screen.replace("\r\n", "").replace(['\n', '\t'], "");
        assert!(!without_layout.contains(is_dangerous), "{bytes:02x?} became {screen:?}");
    }

    #[test]
    fn no_control_survives_in_any_two_bytes() {
        for pair in 0..=u16::MAX {
            check_all(&pair.to_be_bytes());
        }
    }

    #[test]
    fn exactly_the_listed_characters_are_escaped_and_removed() {
        for c in '\0'..=char::MAX {
            let text = c.to_string();
            let (escaped, line) = (Escaped(text.as_bytes()).to_string(), printable(text.as_bytes()));
            assert_eq!(escaped == text, !is_dangerous(c) && c != '\\', "{c:?} became {escaped:?}");
            assert_eq!(line == text, !is_dangerous(c) || c == '\t', "{c:?} became {line:?}");
        }
    }

    #[test]
    fn every_kind_of_byte_is_escaped_as_documented() {
        for (bytes, expected) in [
            (&b"plain text, \"quoted\""[..], "plain text, \"quoted\""),
            (b"", ""),
            (b"a\tb\r\nc\0", r"a\x09b\x0d\x0ac\x00"),
            (b"\x1b]0;title\x07", r"\x1b]0;title\x07"),
            (b"\x7f\x9b\xc2\x9b", r"\x7f\x9b\xc2\x9b"),
            (b"C:\\x1b", r"C:\\x1b"),
            (b"\xe2\x82", r"\xe2\x82"),
            (b"\xed\xa0\x80", r"\xed\xa0\x80"),
            ("\u{61c}\u{200f}\u{2028}\u{2069}".as_bytes(), r"\u{61c}\u{200f}\u{2028}\u{2069}"),
            ("déjà 日本 🦀".as_bytes(), "déjà 日本 🦀"),
        ] {
            assert_eq!(Escaped(bytes).to_string(), expected);
        }
    }

    #[test]
    fn an_escaped_line_cannot_forge_another_line() {
        assert_eq!(printable(b"bye\n127.0.0.1:1 joined"), "bye127.0.0.1:1 joined");
        assert_eq!(printable(b"\xffa\x9b31m\xe2\x82"), "\u{fffd}a\u{fffd}31m\u{fffd}");
    }

    #[test]
    fn right_to_left_text_is_neither_changed_nor_copied() {
        for text in ["שלום עולם", "مرحبا بالعالم", "نیم‌فاصله", "abc אבג 123 def", "👩‍👩‍👧"]
        {
            assert!(matches!(printable(text.as_bytes()), Cow::Borrowed(same) if same == text));
            assert_eq!(Escaped(text.as_bytes()).to_string(), text);
            assert_eq!(ForTerminal(text.as_bytes()).to_string(), text);
            assert_eq!(shown(&[text.as_bytes()]), text);
        }
        assert_eq!(printable("\u{2067}אבג\u{2069}\u{202e}".as_bytes()), "אבג");
    }

    #[test]
    fn a_carriage_return_passes_only_before_a_line_feed() {
        assert_eq!(ForTerminal(b"a\r\nb").to_string(), "a\r\nb");
        assert_eq!(ForTerminal(b"a\r\r\nb\rc\r").to_string(), "a\\x0d\r\nb\\x0dc\\x0d");
        assert_eq!(ForTerminal(b"a\r\xff\n").to_string(), "a\\x0d\\xff\n");
    }

    #[test]
    fn a_terminal_shows_backslashes_unchanged_and_a_log_doubles_them() {
        let json = br#"C:\Users {"a": "x\ny"}"#;
        assert_eq!(ForTerminal(json).to_string().as_bytes(), json);
        assert_eq!(shown(&[&json[..4], &json[4..]]).as_bytes(), json);
        assert_eq!(Escaped(b"a\\b").to_string(), r"a\\b");
    }

    #[test]
    fn the_output_does_not_depend_on_where_a_stream_is_cut() {
        let stream =
            "a\r\n€\r🦀\u{202e}\\".as_bytes().iter().copied().chain(*b"\xe2\x82\xe2\xf0\x9f\r\r\n\xc3");
        let stream: Vec<u8> = stream.collect();
        let whole = ForTerminal(&stream).to_string();
        for i in 0..=stream.len() {
            for j in i..=stream.len() {
                assert_eq!(shown(&[&stream[..i], &stream[i..j], &stream[j..]]), whole, "cut at {i} and {j}");
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(shown(&bytes), whole, "byte by byte");
    }

    #[test]
    fn a_complete_character_is_never_held_back() {
        let (mut terminal, mut out) = (Terminal::default(), String::new());
        for text in ["a", "é", "€", "🦀", "\n"] {
            out.clear();
            terminal.feed(text.as_bytes(), &mut out);
            assert_eq!(out, text);
        }
    }

    /// Bytes in which characters, parts of characters, and line ends are frequent.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            any::<u8>().prop_map(|byte| vec![byte]),
            prop::sample::select(ORDER.to_vec())
                .prop_map(|n| char::from_u32(n).unwrap().to_string().into_bytes()),
            prop::sample::select(vec!["\r", "\n", "\t", "\\", "\\x41", "€", "🦀"])
                .prop_map(|text| text.as_bytes().to_vec()),
        ];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_control_survives_in_any_bytes(bytes in texts()) {
            check_all(&bytes);
        }

        #[test]
        fn the_output_does_not_depend_on_any_cuts_of_a_stream(
            bytes in texts(), sizes in prop::collection::vec(0..6usize, 0..60),
        ) {
            let (mut parts, mut rest) = (Vec::new(), &bytes[..]);
            for size in sizes {
                let (part, after) = rest.split_at(size.min(rest.len()));
                parts.push(part);
                rest = after;
            }
            parts.push(rest);
            prop_assert_eq!(shown(&parts), ForTerminal(&bytes).to_string());
        }
    }
}
