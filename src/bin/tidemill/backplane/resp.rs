//! The protocol of Redis and Valkey, RESP2: commands to it, and its answers within bounds.

use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::encode::encode;
pub use redis_protocol::resp2::types::OwnedFrame as Answer;
use redis_protocol::resp2::types::Resp2Frame;
use tidemill::Input;
use tidemill::text::printable;

/// Values of one answer. Of 64 entries with 8 words each there are some 700.
const VALUES_MAX: usize = 4096;
/// Arrays within arrays: an answer to XREAD has four levels. The decoder calls itself for each.
const DEPTH_MAX: usize = 8;
/// The longest line that is no text of a peer: a length, a status, or an error.
const LINE_MAX: usize = 4096;
/// Characters of an error that are shown.
const SHOWN_MAX: usize = 200;

/// A command, as an array of its words.
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let words = words.iter().map(|word| Answer::BulkString(word.to_vec()));
    let frame = Answer::Array(words.collect());
    let mut bytes = vec![0; frame.encode_len(false)];
    // The buffer has the length that the encoder asks for.
    let length = encode(&mut bytes, &frame, false).unwrap_or(0);
    bytes.truncate(length);
    bytes
}

/// Takes the next answer, if it has arrived as a whole. `SocketLimits::message` bounds how much may wait.
///
/// # Errors
///
/// If the bytes are no answer, or one without bounds.
pub fn take(input: &mut Input<'_>) -> Result<Option<Answer>, String> {
    if !is_whole(input.bytes())? {
        return Ok(None);
    }
    let (answer, length) =
        decode(input.bytes()).map_err(|error| shown(&error.to_string()))?.ok_or("half an answer")?;
    input.take(length);
    Ok(Some(answer))
}

/// Takes all answers that have arrived as a whole, until one is refused.
///
/// # Errors
///
/// That of `take`, or of `on_answer`.
pub fn take_each(
    input: &mut Input<'_>,
    mut on_answer: impl FnMut(&Answer) -> Result<(), String>,
) -> Result<(), String> {
    while let Some(answer) = take(input)? {
        on_answer(&answer)?;
    }
    Ok(())
}

/// An error of the broker as a part of a sentence.
pub fn shown(text: &str) -> String {
    let text = printable(text.as_bytes());
    text.trim_end_matches(['.', ' ']).chars().take(SHOWN_MAX).collect()
}

/// Whether the first answer is there as a whole. The decoder alone would follow any nesting, and begin again with each
/// piece that arrives.
fn is_whole(bytes: &[u8]) -> Result<bool, String> {
    // How many values are still to come, for each array that is open.
    let (mut open, mut rest, mut values) = (vec![1_usize], bytes, 0);
    while let Some(left) = open.last_mut() {
        if *left == 0 {
            open.pop();
            continue;
        }
        *left -= 1;
        values += 1;
        let Some(end) = rest.iter().take(LINE_MAX).position(|byte| *byte == b'\n') else {
            return if rest.len() < LINE_MAX { Ok(false) } else { Err("a line without an end".to_string()) };
        };
        let (line, after) = rest.split_at(end + 1);
        let none = || format!("no answer of Redis: {:?}", shown(&String::from_utf8_lossy(line)));
        let length = || {
            let digits = line[1..].strip_suffix(b"\r\n").and_then(|digits| std::str::from_utf8(digits).ok());
            let length = digits.and_then(|digits| digits.parse::<i64>().ok());
            length.ok_or_else(none)
        };
        rest = match line[0] {
            b'+' | b'-' | b':' => after,
            b'$' => match usize::try_from(length()?).ok().map(|text| after.get(text.saturating_add(2)..)) {
                Some(Some(after)) => after,
                Some(None) => return Ok(false),
                None => after,
            },
            b'*' => {
                // Lengths below zero stand for none.
                open.push(usize::try_from(length()?).unwrap_or(0));
                after
            }
            _ => return Err(none()),
        };
        if open.len() > DEPTH_MAX + 1 || values.max(open.iter().copied().max().unwrap_or(0)) > VALUES_MAX {
            return Err("an answer with too many values".to_string());
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(bytes: &[u8]) -> Result<Option<Answer>, String> {
        take(&mut Input::new(bytes))
    }

    #[test]
    fn a_command_is_an_array_of_its_words() {
        assert_eq!(command(&[b"PING"]), b"*1\r\n$4\r\nPING\r\n");
        assert_eq!(command(&[b"GET", b"a\r\nb"]), b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn an_answer_is_taken_when_its_last_byte_has_come() {
        for whole in
            ["+OK\r\n", "-ERR no\r\n", ":7\r\n", "$-1\r\n", "*-1\r\n", "*2\r\n$3\r\na\r\n\r\n*1\r\n:1\r\n"]
        {
            for end in 0..whole.len() {
                assert_eq!(take_all(&whole.as_bytes()[..end]), Ok(None), "{:?}", &whole[..end]);
            }
            let both = format!("{whole}+NEXT\r\n");
            let mut input = Input::new(both.as_bytes());
            assert!(matches!(take(&mut input), Ok(Some(_))), "{whole:?}");
            assert_eq!(input.bytes(), b"+NEXT\r\n");
        }
    }

    #[test]
    fn what_is_no_answer_or_has_no_bounds_is_refused() {
        let deep = "*1\r\n".repeat(1_000_000);
        let long = format!("+{}", "x".repeat(5_000));
        let many = format!("*2\r\n{}", format!("*4000\r\n{}", ":1\r\n".repeat(4000)).repeat(2));
        for bytes in
            ["HTTP/1.1 400 Bad Request\r\n", "$x\r\n", "\r\n", "*9999999999999\r\n", &deep, &long, &many]
        {
            let short: String = bytes.chars().take(30).collect();
            assert!(take_all(bytes.as_bytes()).is_err(), "{short:?}");
        }
        let error = take_all(b"\x1b[31mSSH-2.0\r\n").expect_err("it is none");
        assert_eq!(error, "no answer of Redis: \"[31mSSH-2.0\"");
    }
}
