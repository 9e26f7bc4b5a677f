//! What `connect` sends for what is typed, and shows for what arrives.

use std::fmt::Write;

use tidemill::framing::Framing;
use tidemill::text::{ForTerminal, Terminal};
use tidemill::{CloseReason, Input};

/// Bytes of stdin as they are to be sent.
#[derive(Default)]
pub struct Outgoing {
    /// Each line is the body of a frame.
    framing: Option<Framing>,
    /// Lines end with `\r\n` on the wire.
    crlf: bool,
    /// A line that is not complete, where lines become frames.
    line: Vec<u8>,
    /// The last byte, where line ends are changed.
    last: u8,
}

impl Outgoing {
    pub fn new(framing: Option<Framing>, crlf: bool) -> Outgoing {
        Outgoing { framing, crlf, ..Outgoing::default() }
    }

    /// What is to be sent for so much more of stdin.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, String> {
        let Some(framing) = self.framing.clone() else {
            return Ok(if self.crlf { self.with_crlf(bytes) } else { bytes.to_vec() });
        };
        let mut wire = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            framing.encode(&self.line, &mut wire).map_err(|error| error.to_string())?;
            self.line.clear();
        }
        self.line.extend_from_slice(bytes);
        Ok(wire)
    }

    /// What is to be sent at the end of stdin: a last line may have no end.
    pub fn finish(&mut self) -> Result<Vec<u8>, String> {
        let mut wire = Vec::new();
        if let (Some(framing), false) = (&self.framing, self.line.is_empty()) {
            framing.encode(&self.line, &mut wire).map_err(|error| error.to_string())?;
        }
        Ok(wire)
    }

    fn with_crlf(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut wire = Vec::with_capacity(bytes.len() + 16);
        for &byte in bytes {
            if byte == b'\n' && self.last != b'\r' {
                wire.push(b'\r');
            }
            wire.push(byte);
            self.last = byte;
        }
        wire
    }
}

/// What arrives as it is to be shown.
pub struct Incoming {
    /// Each frame is a line.
    framing: Option<Framing>,
    hex: bool,
    /// For a terminal that must not obey what arrives.
    terminal: Option<Terminal>,
    offset: usize,
}

impl Incoming {
    /// `safely` is for a terminal: controls are spelled out.
    pub fn new(framing: Option<Framing>, hex: bool, safely: bool) -> Incoming {
        Incoming { framing, hex, terminal: safely.then(Terminal::default), offset: 0 }
    }

    /// Bytes that must be kept until a frame is complete.
    pub fn inbox_limit(&self) -> usize {
        self.framing.as_ref().map_or(1 << 20, Framing::inbox_limit)
    }

    /// What is to be written for what has arrived.
    pub fn show(&mut self, input: &mut Input<'_>, out: &mut Vec<u8>) -> Result<(), (CloseReason, String)> {
        let Some(framing) = self.framing.clone() else {
            self.show_bytes(input.take_all(), out);
            return Ok(());
        };
        loop {
            match framing.next(input) {
                Ok(Some(body)) => self.show_frame(body, out),
                Ok(None) => return Ok(()),
                Err(error) => return Err((CloseReason::from(error), error.to_string())),
            }
        }
    }

    /// What is to be written when nothing more will come.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if let Some(terminal) = &mut self.terminal {
            let mut text = String::new();
            terminal.finish(&mut text);
            out.extend_from_slice(text.as_bytes());
        }
    }

    fn show_bytes(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match (&mut self.terminal, self.hex) {
            (_, true) => self.dump(bytes, out),
            (None, false) => out.extend_from_slice(bytes),
            (Some(terminal), false) => {
                let mut text = String::new();
                terminal.feed(bytes, &mut text);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    fn show_frame(&mut self, body: &[u8], out: &mut Vec<u8>) {
        match (&self.terminal, self.hex) {
            (_, true) => {
                let hex: Vec<String> = body.iter().map(|byte| format!("{byte:02x}")).collect();
                out.extend_from_slice(hex.join(" ").as_bytes());
            }
            (None, false) => out.extend_from_slice(body),
            (Some(_), false) => out.extend_from_slice(ForTerminal(body).to_string().as_bytes()),
        }
        out.push(b'\n');
    }

    /// Sixteen bytes a line: where in the stream, the bytes, and the characters among them.
    fn dump(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for row in bytes.chunks(16) {
            let mut line = format!("{:08x}", self.offset);
            for (n, byte) in row.iter().enumerate() {
                // Writing to a string does not fail.
                let _ = write!(line, "{}{byte:02x}", if n % 8 == 0 { "  " } else { " " });
            }
            let plain: String = row
                .iter()
                .map(|&byte| if (0x20..0x7f).contains(&byte) { byte as char } else { '.' })
                .collect();
            let _ = writeln!(line, "{:1$}|{plain}|", "", 60_usize.saturating_sub(line.len()));
            self.offset += row.len();
            out.extend_from_slice(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_become_those_of_the_network_wherever_stdin_is_cut() {
        let typed = b"one\ntwo\r\n\nthree";
        for cut in 0..=typed.len() {
            let mut outgoing = Outgoing::new(None, true);
            let mut wire = outgoing.feed(&typed[..cut]).unwrap();
            wire.extend(outgoing.feed(&typed[cut..]).unwrap());
            wire.extend(outgoing.finish().unwrap());
            assert_eq!(wire, b"one\r\ntwo\r\n\r\nthree", "cut at {cut}");
        }
    }

    #[test]
    fn each_line_becomes_a_frame_and_each_frame_a_line() {
        let framing: Framing = "u16be".parse().unwrap();
        let mut outgoing = Outgoing::new(Some(framing.clone()), false);
        let mut wire = outgoing.feed(b"he").unwrap();
        wire.extend(outgoing.feed(b"llo\n\nlast").unwrap());
        wire.extend(outgoing.finish().unwrap());
        assert_eq!(wire, b"\0\x05hello\0\0\0\x04last");
        let shown = |hex: bool, safely: bool, wire: &[u8]| {
            let mut out = Vec::new();
            let mut incoming = Incoming::new(Some(framing.clone()), hex, safely);
            incoming.show(&mut Input::new(wire), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(false, false, &wire), "hello\n\nlast\n");
        assert_eq!(shown(true, false, b"\0\x03\0\xffa"), "00 ff 61\n");
        assert_eq!(shown(false, true, b"\0\x04\x1b[2J"), "\\x1b[2J\n");
    }

    #[test]
    fn a_dump_shows_where_what_and_as_which_characters() {
        let mut out = Vec::new();
        let mut incoming = Incoming::new(None, true, true);
        incoming.show(&mut Input::new(b"hello, world\r\n\0\xff+1"), &mut out).unwrap();
        incoming.show(&mut Input::new(b"x"), &mut out).unwrap();
        let lines = String::from_utf8(out).unwrap();
        let expected = "\
00000000  68 65 6c 6c 6f 2c 20 77  6f 72 6c 64 0d 0a 00 ff  |hello, world....|
00000010  2b 31                                             |+1|
00000012  78                                                |x|
";
        assert_eq!(lines, expected);
    }
}
