//! Where an answer ends in Redis' protocol, HTTP/1.1 and SMTP, and whether it is a success.

use tidemill::Input;

use super::answer::show;
use crate::args::load::Protocol;

/// Headers of one HTTP response; more are an error of the server's.
const HEADERS_MAX: usize = 128;
/// Nested arrays of one reply. Redis itself nests a handful.
const DEPTH_MAX: usize = 32;

/// Takes the next complete answer; says whether the protocol calls it a success. None: it is not complete.
pub fn next<'a>(protocol: Protocol, input: &mut Input<'a>) -> Result<Option<(&'a [u8], bool)>, String> {
    let bytes = input.bytes();
    let found = match protocol {
        Protocol::Redis => redis(bytes, 0)?.map(|length| (length, bytes[0] != b'-' && bytes[0] != b'!')),
        Protocol::Http => http(bytes)?,
        Protocol::Smtp => smtp(bytes)?,
    };
    Ok(found.map(|(length, fine)| (input.take(length), fine)))
}

/// The length of the line at the front, its `\r\n` included.
fn line(bytes: &[u8]) -> Option<usize> {
    memchr_crlf(bytes).map(|at| at + 2)
}

fn memchr_crlf(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\r\n")
}

/// The length of one reply of RESP2 or RESP3.
fn redis(bytes: &[u8], depth: usize) -> Result<Option<usize>, String> {
    let Some(mut at) = line(bytes) else { return Ok(None) };
    let wrong = || format!("{} is no reply of Redis' protocol", show(bytes));
    if depth > DEPTH_MAX {
        return Err(wrong());
    }
    let count = || -> Result<Option<usize>, String> {
        let text = std::str::from_utf8(&bytes[1..at - 2]).map_err(|_| wrong())?;
        match text.parse::<i64>() {
            Ok(-1) => Ok(None),
            Ok(count) => usize::try_from(count).map(Some).map_err(|_| wrong()),
            Err(_) => Err(wrong()),
        }
    };
    let items = match bytes[0] {
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => return Ok(Some(at)),
        b'$' | b'!' | b'=' => {
            let Some(length) = count()? else { return Ok(Some(at)) };
            let end = at.saturating_add(length).saturating_add(2);
            return Ok((bytes.len() >= end).then_some(end));
        }
        b'*' | b'~' | b'>' => count()?.unwrap_or(0),
        b'%' => count()?.unwrap_or(0).saturating_mul(2),
        _ => return Err(wrong()),
    };
    for _ in 0..items {
        let Some(length) = redis(&bytes[at..], depth + 1)? else { return Ok(None) };
        at += length;
    }
    Ok(Some(at))
}

/// The length of one HTTP/1.1 response with its body; success is a status below 400. Interim responses (1xx) are part
/// of the one that follows.
fn http(bytes: &[u8]) -> Result<Option<(usize, bool)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("{} is no HTTP response: {error}", show(bytes))),
    };
    let status = response.code.unwrap_or(0);
    if (100..200).contains(&status) {
        let rest = http(&bytes[head..])?;
        return Ok(rest.map(|(length, fine)| (head + length, fine)));
    }
    let value = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
    };
    let body = if status == 204 || status == 304 {
        Some(0)
    } else if value("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
        chunked(&bytes[head..])?
    } else if let Some(length) = value("content-length") {
        let wrong = || format!("{length:?} is no content length");
        let length: usize = length.parse().map_err(|_| wrong())?;
        (bytes.len() - head >= length).then_some(length)
    } else {
        return Err(
            "the HTTP response has neither a content length nor chunks: its end cannot be told".into()
        );
    };
    Ok(body.map(|length| (head + length, status < 400)))
}

/// The length of a body in chunks, its trailers included.
fn chunked(bytes: &[u8]) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let (skip, size) = match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(format!("{} is no chunk of an HTTP body", show(&bytes[at..]))),
        };
        at += skip;
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        at = at.saturating_add(size).saturating_add(2);
        if at > bytes.len() {
            return Ok(None);
        }
    }
    // Trailers end with an empty line.
    while let Some(length) = line(&bytes[at..]) {
        at += length;
        if length == 2 {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// The length of one reply of SMTP (RFC 5321, 4.2), of several lines if need be; success is a code below 400.
fn smtp(bytes: &[u8]) -> Result<Option<(usize, bool)>, String> {
    let mut at = 0;
    while let Some(length) = line(&bytes[at..]) {
        let text = &bytes[at..at + length - 2];
        let coded = text.len() >= 3 && text[..3].iter().all(u8::is_ascii_digit);
        if !coded {
            return Err(format!("{} is no reply of SMTP", show(text)));
        }
        at += length;
        if text.get(3) != Some(&b'-') {
            return Ok(Some((at, text[0] < b'4')));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths and verdicts of all answers, each found only once its last byte is there.
    fn answers(protocol: Protocol, stream: &[u8]) -> Vec<(usize, bool)> {
        let (mut found, mut from) = (Vec::new(), 0);
        for to in 1..=stream.len() {
            let mut input = Input::new(&stream[from..to]);
            if let Some((answer, fine)) = next(protocol, &mut input).expect("it is well-formed") {
                assert!(input.is_empty(), "it was complete before");
                found.push((answer.len(), fine));
                from = to;
            }
        }
        assert_eq!(from, stream.len());
        found
    }

    #[test]
    fn replies_of_redis_end_where_they_end() {
        let stream = b"+PONG\r\n:12\r\n$-1\r\n$5\r\na\r\nbc\r\n\
                       *2\r\n*1\r\n$1\r\nx\r\n:3\r\n-ERR no\r\n%1\r\n+a\r\n#t\r\n";
        let expected = [(7, true), (5, true), (5, true), (11, true), (19, true), (9, false), (12, true)];
        assert_eq!(answers(Protocol::Redis, stream), expected);
        assert!(next(Protocol::Redis, &mut Input::new(b"server busy\r\n")).is_err());
    }

    #[test]
    fn responses_of_http_end_with_their_bodies() {
        let stream = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
                       HTTP/1.1 404 no\r\ntransfer-encoding: chunked\r\n\r\n\
                       3\r\nabc\r\n0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 none\r\n\r\n";
        assert_eq!(answers(Protocol::Http, stream), [(41, true), (60, false), (46, true)]);
        assert!(next(Protocol::Http, &mut Input::new(b"SSH-2.0-x\r\n\r\n")).is_err());
        assert!(next(Protocol::Http, &mut Input::new(b"HTTP/1.1 200 OK\r\n\r\n")).is_err(), "no end");
    }

    #[test]
    fn replies_of_smtp_may_have_several_lines() {
        let stream = b"220 hello\r\n250-one\r\n250 two\r\n451 later\r\n";
        assert_eq!(answers(Protocol::Smtp, stream), [(11, true), (18, true), (11, false)]);
    }
}
