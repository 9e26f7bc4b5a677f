//! The PROXY protocol: a header in which a proxy sends the addresses of the connection that it forwards.
//!
//! Versions 1 (a line of text) and 2 (binary) of HAProxy's proxy-protocol.txt. Pure: no I/O, and no allocation by a
//! length that a peer announces.
//!
//! # Trust
//!
//! A sender of this header can claim any address. Read it only from trusted senders. From these a header is required:
//! a connection without one is closed like one with a malformed header (section 2: a receiver "must not try to guess"
//! whether a header is present).

use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The addresses of the connection that a proxy forwards.
///
/// ```
/// use tidemill::framing::proxy_header::ProxyHeader;
///
/// let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nhello";
/// let (header, length) = ProxyHeader::parse(line).unwrap().expect("a complete header");
/// assert_eq!(header.source(), Some("192.0.2.7:56324".parse().unwrap()));
/// assert_eq!(&line[length..], b"hello");
///
/// assert_eq!(ProxyHeader::parse(b"PROXY TCP"), Ok(None), "more bytes are needed");
/// assert!(ProxyHeader::parse(b"GET / HTTP/1.1\r\n").is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProxyHeader {
    /// No addresses: a connection of the proxy itself (a health check), or one whose addresses are not known.
    Unknown,
    /// A forwarded connection.
    For {
        /// The client's address.
        source: SocketAddr,
        /// The address that the client connected to.
        destination: SocketAddr,
    },
}

/// The version of a header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HeaderVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum HeaderError {
    /// They do not begin like a header.
    Missing,
    /// They begin like a header, but are malformed.
    Malformed,
    /// The header is longer than allowed: 107 bytes in version 1, 4096 in version 2.
    TooLong,
}

/// The maximum length of version 1 with its line end (section 2.1).
const V1_MAX: usize = 107;
/// The maximum length of version 2. Receivers must accept 536 bytes (section 2.2); extensions (TLVs) with a client
/// certificate or with the names of a cloud's endpoints take 1 to 3 KiB. Extensions are skipped.
const V2_MAX: usize = 4096;
const V1_BEGINS: &[u8] = b"PROXY ";
const V2_BEGINS: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

impl ProxyHeader {
    /// Parses a header at the front of the received bytes, and returns it with its length. `None`: more bytes are
    /// needed.
    ///
    /// # Errors
    ///
    /// When the bytes cannot become a header, at the first byte that shows it.
    pub fn parse(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, HeaderError> {
        let begins = |with: &[u8]| bytes.iter().zip(with).all(|(one, other)| one == other);
        if begins(V1_BEGINS) {
            return parse_v1(bytes);
        }
        if begins(V2_BEGINS) {
            return parse_v2(bytes);
        }
        Err(HeaderError::Missing)
    }

    /// The client's address, if the header has one.
    pub fn source(&self) -> Option<SocketAddr> {
        match self {
            ProxyHeader::Unknown => None,
            ProxyHeader::For { source, .. } => Some(*source),
        }
    }

    /// Appends the header to `out`. If one address is IPv4 and the other IPv6, the IPv4 address is mapped into IPv6.
    pub fn encode(&self, version: HeaderVersion, out: &mut Vec<u8>) {
        let ends = match *self {
            ProxyHeader::Unknown => None,
            ProxyHeader::For { source, destination } if source.is_ipv4() == destination.is_ipv4() => {
                Some((source, destination))
            }
            ProxyHeader::For { source, destination } => Some((mapped(source), mapped(destination))),
        };
        match version {
            HeaderVersion::V1 => encode_v1(ends, out),
            HeaderVersion::V2 => encode_v2(ends, out),
        }
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, HeaderError> {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if bytes.len() >= V1_MAX { Err(HeaderError::TooLong) } else { Ok(None) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(HeaderError::Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| HeaderError::Malformed)?;
    let header = line.strip_prefix("PROXY ").and_then(v1_fields).ok_or(HeaderError::Malformed)?;
    Ok(Some((header, end + 1)))
}

fn v1_fields(line: &str) -> Option<ProxyHeader> {
    // The rest of the line after UNKNOWN is ignored (section 2.1).
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Some(ProxyHeader::Unknown);
    }
    let mut fields = line.split(' ');
    let (family, source, destination) = (fields.next()?, fields.next()?, fields.next()?);
    let ports = (port(fields.next()?)?, port(fields.next()?)?);
    let ips: (IpAddr, IpAddr) = match family {
        "TCP4" => (source.parse::<Ipv4Addr>().ok()?.into(), destination.parse::<Ipv4Addr>().ok()?.into()),
        "TCP6" => (source.parse::<Ipv6Addr>().ok()?.into(), destination.parse::<Ipv6Addr>().ok()?.into()),
        _ => return None,
    };
    let (source, destination) = (SocketAddr::new(ips.0, ports.0), SocketAddr::new(ips.1, ports.1));
    fields.next().is_none().then_some(ProxyHeader::For { source, destination })
}

/// One or more digits, without a zero in front (section 2.1).
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|digit| digit.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, HeaderError> {
    // Each byte is checked as soon as it has arrived, so that a malformed header is refused early.
    let local = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(HeaderError::Malformed),
    };
    let Some(&family) = bytes.get(13) else { return Ok(None) };
    let Some(&[high, low]) = bytes.get(14..16) else { return Ok(None) };
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    if length > V2_MAX {
        return Err(HeaderError::TooLong);
    }
    let addresses = match family {
        0x11 => 12,
        0x21 => 36,
        // Unspecified, datagrams, Unix-domain sockets: no addresses of a TCP stream, and not an error (section 2.2).
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => 0,
        _ => return Err(HeaderError::Malformed),
    };
    if !local && length < 16 + addresses {
        return Err(HeaderError::Malformed);
    }
    let Some(body) = bytes.get(16..length) else { return Ok(None) };
    let header = if local { ProxyHeader::Unknown } else { v2_addresses(family, body) };
    Ok(Some((header, length)))
}

fn v2_addresses(family: u8, body: &[u8]) -> ProxyHeader {
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let v4 = |at: usize| IpAddr::from([body[at], body[at + 1], body[at + 2], body[at + 3]]);
    let v6 = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&body[at..at + 16]);
        IpAddr::from(octets)
    };
    let (source, destination) = match family {
        0x11 => (SocketAddr::new(v4(0), port(8)), SocketAddr::new(v4(4), port(10))),
        0x21 => (SocketAddr::new(v6(0), port(32)), SocketAddr::new(v6(16), port(34))),
        _ => return ProxyHeader::Unknown,
    };
    ProxyHeader::For { source, destination }
}

fn encode_v1(ends: Option<(SocketAddr, SocketAddr)>, out: &mut Vec<u8>) {
    let Some((source, destination)) = ends else { return out.extend_from_slice(b"PROXY UNKNOWN\r\n") };
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    // Writing to a vector does not fail.
    let _ = write!(out, "PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
}

fn encode_v2(ends: Option<(SocketAddr, SocketAddr)>, out: &mut Vec<u8>) {
    out.extend_from_slice(V2_BEGINS);
    let Some((source, destination)) = ends else { return out.extend_from_slice(&[0x20, 0, 0, 0]) };
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&octets(from));
            out.extend_from_slice(&octets(to));
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeaderError::Missing => "there is no PROXY header",
            HeaderError::Malformed => "the PROXY header cannot be read",
            HeaderError::TooLong => "the PROXY header is longer than is allowed",
        })
    }
}

impl std::error::Error for HeaderError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(source: &str, destination: &str) -> ProxyHeader {
        ProxyHeader::For { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_written_can_be_read_in_both_versions() {
        let headers = [
            ProxyHeader::Unknown,
            header("192.0.2.7:56324", "198.51.100.1:443"),
            header("[2001:db8::7]:1", "[::1]:65535"),
        ];
        for (header, version) in
            headers.iter().flat_map(|header| [(header, HeaderVersion::V1), (header, HeaderVersion::V2)])
        {
            let mut wire = Vec::new();
            header.encode(version, &mut wire);
            let length = wire.len();
            wire.extend_from_slice(b"\r\n\r\n\0payload");
            assert_eq!(ProxyHeader::parse(&wire), Ok(Some((*header, length))));
            for cut in 0..length {
                assert_eq!(ProxyHeader::parse(&wire[..cut]), Ok(None), "cut at {cut} of {length}");
            }
        }
    }

    #[test]
    fn ends_of_different_versions_are_both_written_as_version_six() {
        for version in [HeaderVersion::V1, HeaderVersion::V2] {
            let mut wire = Vec::new();
            header("192.0.2.7:1", "[::1]:2").encode(version, &mut wire);
            let (read, _) = ProxyHeader::parse(&wire).unwrap().unwrap();
            assert_eq!(read, header("[::ffff:192.0.2.7]:1", "[::1]:2"));
        }
    }

    #[test]
    fn a_line_that_is_not_exactly_one_is_refused() {
        let wrong = [
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP6 fe80::1%1 ::1 1 2\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY \r\n",
            "PROXY UNKNOWNx\r\n",
            "PROXY TCP4 256.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n",
        ];
        for line in wrong {
            assert_eq!(ProxyHeader::parse(line.as_bytes()), Err(HeaderError::Malformed), "{line:?}");
        }
        assert_eq!(
            ProxyHeader::parse(&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat()),
            Err(HeaderError::TooLong)
        );
        for other in ["proxy TCP4", "GET / ", "\r\n\r\n\0\r\nQUIT\r", "PROXYTCP4", "\x16\x03\x01"] {
            assert_eq!(ProxyHeader::parse(other.as_bytes()), Err(HeaderError::Missing), "{other:?}");
        }
    }

    #[test]
    fn the_binary_form_is_bounded_and_its_extensions_are_skipped() {
        let with = |bytes: &[u8]| ProxyHeader::parse(&[V2_BEGINS, bytes].concat());
        assert_eq!(
            with(&[0x21, 0x11, 0xff, 0xff]),
            Err(HeaderError::TooLong),
            "before a byte of it is waited for"
        );
        assert_eq!(with(&[0x21, 0x11, 0, 11]), Err(HeaderError::Malformed));
        assert_eq!(with(&[0x31]), Err(HeaderError::Malformed));
        assert_eq!(with(&[0x22]), Err(HeaderError::Malformed));
        assert_eq!(with(&[0x21, 0x41, 0, 0]), Err(HeaderError::Malformed));
        let long = [&[0x20, 0, 0x0f, 0xf0][..], &[0; 4080][..]].concat();
        assert_eq!(with(&long), Ok(Some((ProxyHeader::Unknown, 4096))), "the longest");
        assert_eq!(with(&[0x20, 0, 0x0f, 0xf1]), Err(HeaderError::TooLong));
        let body = [1, 2, 3, 4, 5, 6, 7, 8, 0, 80, 1, 187, 0x04, 0, 2, 9, 9];
        let read = with(&[&[0x21, 0x11, 0, 17][..], &body[..], b"rest"].concat()).unwrap();
        assert_eq!(read, Some((header("1.2.3.4:80", "5.6.7.8:443"), 33)));
        assert_eq!(with(&[0x21, 0x31, 0, 0]), Ok(Some((ProxyHeader::Unknown, 16))));
        assert_eq!(
            with(&[0x20, 0x11, 0, 0]),
            Ok(Some((ProxyHeader::Unknown, 16))),
            "LOCAL needs no addresses"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_none_are_taken_that_are_not_there(
            version in 0..3_u8,
            mut bytes in prop::collection::vec(any::<u8>(), 0..700),
        ) {
            let begin: &[u8] = match version { 0 => b"", 1 => V1_BEGINS, _ => V2_BEGINS };
            bytes.splice(0..0, begin.iter().copied());
            if let Ok(Some((_, length))) = ProxyHeader::parse(&bytes) {
                prop_assert!(length <= bytes.len() && length <= V2_MAX);
            }
        }
    }
}
