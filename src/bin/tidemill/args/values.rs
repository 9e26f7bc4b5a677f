//! How the values of options are written: times, sizes, rates, addresses.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::Shell;
use tidemill::framing::proxy_header::HeaderVersion;
use tidemill::services::{Balance, Upstream};
use tidemill::{Address, IpRange, MinRate, Overflow};

/// What the connections of a load do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Send messages and receive their answers.
    Echo,
    /// Connect, send one message, receive its answer, close; repeatedly.
    Churn,
    /// Stay open and send nothing.
    Idle,
    /// One connection sends lines, all others receive them.
    FanOut,
}

/// A span of time; none stands for no limit.
#[derive(Clone, Copy)]
pub struct DurationArg(pub Option<Duration>);

impl FromStr for DurationArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DurationArg, String> {
        if text == "0" {
            return Ok(DurationArg(None));
        }
        if text.contains('M') {
            return Err("M could be minutes or months: write 5min, or 150d".to_string());
        }
        let span = humantime::parse_duration(text);
        let span = span.map_err(|_| "a time is written as 500ms, 30s or 5min, or 0".to_string())?;
        // A wheel of ten-millisecond ticks outlives this by far; it is here to catch slips of the keyboard.
        if span > Duration::from_secs(10 * 366 * 86_400) {
            return Err("ten years are the longest".to_string());
        }
        Ok(DurationArg(Some(span).filter(|span| !span.is_zero())))
    }
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListenArg {
    At(Address),
    /// On the sockets that systemd passes: on those with this name, or on all that have no entry of their own.
    Systemd(Option<String>),
}

impl ListenArg {
    /// Which sockets of systemd are meant, if any.
    pub fn passed(&self) -> Option<Option<&str>> {
        match self {
            ListenArg::At(_) => None,
            ListenArg::Systemd(name) => Some(name.as_deref()),
        }
    }
}

impl FromStr for ListenArg {
    type Err = String;

    fn from_str(text: &str) -> Result<ListenArg, String> {
        match text.strip_prefix("systemd") {
            Some("") => Ok(ListenArg::Systemd(None)),
            Some(name) if name.len() > 1 && name.starts_with(':') => {
                Ok(ListenArg::Systemd(Some(name[1..].to_string())))
            }
            _ => address(text).map(ListenArg::At),
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy)]
pub struct SizeArg(pub usize);

impl FromStr for SizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<SizeArg, String> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start();
        if let Some(letter) =
            ["K", "M", "G", "T"].into_iter().find(|letter| unit.eq_ignore_ascii_case(letter))
        {
            return Err(format!(
                "{unit} could be 1000 or 1024 to a step: write {letter}iB (1024) or {letter}B (1000)"
            ));
        }
        let bytes =
            text.parse::<ByteSize>().map_err(|_| "a size is written as 512, 64KiB or 1MiB".to_string())?;
        // Beyond this, sums of sizes could overflow, and no machine has so much.
        let fits = usize::try_from(bytes.as_u64()).ok().filter(|&bytes| bytes <= 1 << 48);
        match fits {
            Some(0) => Err("at least 1 byte is needed".to_string()),
            Some(bytes) => Ok(SizeArg(bytes)),
            None => Err("no machine has so much memory".to_string()),
        }
    }
}

/// A number of bytes, or a rate in bytes a second; none stands for no limit.
#[derive(Clone, Copy)]
pub struct OptionalSizeArg(pub Option<usize>);

impl FromStr for OptionalSizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<OptionalSizeArg, String> {
        match text {
            "0" => Ok(OptionalSizeArg(None)),
            size => size.parse().map(|SizeArg(bytes)| OptionalSizeArg(Some(bytes))),
        }
    }
}

/// A least rate; none stands for no limit.
#[derive(Clone, Copy)]
pub struct MinRateArg(pub Option<MinRate>);

impl FromStr for MinRateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<MinRateArg, String> {
        if text == "0" {
            return Ok(MinRateArg(None));
        }
        let Some((bytes, per)) = text.split_once('/') else {
            return Err("a rate is written as 1KiB/10s, or 0 for no limit".to_string());
        };
        let (SizeArg(bytes), DurationArg(per)) = (bytes.parse()?, per.parse()?);
        match per {
            Some(per) => Ok(MinRateArg(Some(MinRate { bytes, per }))),
            None => Err("the time of a rate cannot be 0; 0 alone is no limit".to_string()),
        }
    }
}

pub fn range(text: &str) -> Result<IpRange, String> {
    text.parse().map_err(|error: tidemill::RangeError| error.reason().to_string())
}

pub fn version() -> impl TypedValueParser<Value = HeaderVersion> {
    PossibleValuesParser::new(["v1", "v2"]).map(|name| match name.as_str() {
        "v1" => HeaderVersion::V1,
        _ => HeaderVersion::V2,
    })
}

pub fn overflow() -> impl TypedValueParser<Value = Overflow> {
    PossibleValuesParser::new(["refuse", "wait"]).map(|how| match how.as_str() {
        "wait" => Overflow::Wait,
        _ => Overflow::Refuse,
    })
}

pub fn shell() -> impl TypedValueParser<Value = Shell> {
    PossibleValuesParser::new(["bash", "fish", "zsh"]).map(|name| match name.as_str() {
        "bash" => Shell::Bash,
        "fish" => Shell::Fish,
        _ => Shell::Zsh,
    })
}

/// An upstream with its options, as ADDR[,weight=N][,max=N][,backup].
pub fn upstream(text: &str) -> Result<Upstream, String> {
    // From the right, because the path of a socket may have a comma.
    let (mut rest, mut weight, mut max, mut backup) = (text, None, None, false);
    while let Some((before, option)) = rest.rsplit_once(',') {
        let number = |value: &str| {
            value
                .parse::<u32>()
                .ok()
                .filter(|number| (1..=1_000_000).contains(number))
                .ok_or_else(|| format!("{option:?}: a number from 1 to 1000000 is needed"))
        };
        match option.split_once('=') {
            Some(("weight", value)) if weight.is_none() => weight = Some(number(value)?),
            Some(("max", value)) if max.is_none() => max = Some(number(value)?),
            None if option == "backup" && !backup => backup = true,
            _ if before.starts_with("unix:") => break,
            _ => {
                return Err(format!("{option:?}: after a comma stands weight=N, max=N or backup, each once"));
            }
        }
        rest = before;
    }
    Ok(Upstream {
        weight: weight.unwrap_or(1),
        max_connections: max.map(|max| max as usize),
        backup,
        ..Upstream::from(address(rest)?)
    })
}

pub fn balance() -> impl TypedValueParser<Value = Balance> {
    PossibleValuesParser::new(["round-robin", "least-connections"]).map(|how| match how.as_str() {
        "least-connections" => Balance::LeastConnections,
        _ => Balance::RoundRobin,
    })
}

/// A time that the kernel counts in seconds: at most 32767 (tcp(7), TCP_KEEPIDLE).
pub fn keep_alive(text: &str) -> Result<DurationArg, String> {
    let span: DurationArg = text.parse()?;
    match span.0 {
        Some(span) if span > Duration::from_secs(32_767) => {
            Err("the kernel allows at most 32767s, about 9h".to_string())
        }
        _ => Ok(span),
    }
}

/// Checks the form only; whether a name can be resolved is seen when it is used.
pub fn address(text: &str) -> Result<Address, String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        let port = match scheme {
            _ if host.contains(':') => "",
            "https" => ":443",
            "http" => ":80",
            _ => ":PORT",
        };
        let tls = if scheme == "https" { " with --tls" } else { "" };
        return Err(format!("this is a URL; write HOST:PORT, here {host}{port}{tls}"));
    }
    let port = text.strip_prefix(':').unwrap_or(text);
    if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("a host is missing; write 127.0.0.1:{port}, or [::]:{port} for all addresses"));
    }
    let text = numeric_zone(text)?;
    text.parse().map_err(|error: tidemill::AddressError| error.reason().to_string())
}

/// Replaces the zone of a link-local address, given as an interface's name, with the interface's index:
/// `[fe80::1%eth0]:9001`.
fn numeric_zone(text: &str) -> Result<Cow<'_, str>, String> {
    let zone = text.strip_prefix('[').and_then(|rest| rest.split_once(']')?.0.split_once('%'));
    match zone {
        Some((_, name)) if name.is_empty() || name.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(text.into())
        }
        Some((ip, name)) => {
            let index = interface_index(name)?;
            Ok(text.replacen(&format!("[{ip}%{name}]"), &format!("[{ip}%{index}]"), 1).into())
        }
        None => Ok(text.into()),
    }
}

#[cfg(target_os = "linux")]
fn interface_index(name: &str) -> Result<u32, String> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let failed = |error: rustix::io::Errno| match error {
        rustix::io::Errno::NODEV => format!("there is no network interface {name}"),
        error => format!("cannot look up the network interface {name}: {error}"),
    };
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None).map_err(failed)?;
    netdevice::name_to_index(any, name).map_err(failed)
}

#[cfg(not(target_os = "linux"))]
fn interface_index(name: &str) -> Result<u32, String> {
    Err(format!("write the zone {name} as the interface's index, a number"))
}

/// A rate per second: above 0, and at most 100 million, beyond what one thread can send.
pub fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a rate is a number a second, as in 1000 or 0.5".to_string())?;
    if rate > 0.0 && rate <= 1e8 {
        Ok(rate)
    } else {
        Err("a rate lies above 0 and up to 100000000".to_string())
    }
}

/// Bytes, written as text with escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub Vec<u8>);

impl FromStr for Text {
    type Err = String;

    fn from_str(text: &str) -> Result<Text, String> {
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if byte != b'\\' {
                bytes.push(byte);
                continue;
            }
            let wrong = || "escapes are \\r \\n \\t \\0 \\xNN and \\\\".to_string();
            let (&escape, after) = rest.split_first().ok_or_else(wrong)?;
            rest = after;
            bytes.push(match escape {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                b'\\' => b'\\',
                b'x' => {
                    let digits =
                        rest.get(..2).and_then(|two| std::str::from_utf8(two).ok()).ok_or_else(wrong)?;
                    rest = &rest[2..];
                    u8::from_str_radix(digits, 16).map_err(|_| wrong())?
                }
                _ => return Err(wrong()),
            });
        }
        if bytes.is_empty() { Err("the text is empty".to_string()) } else { Ok(Text(bytes)) }
    }
}

/// Local addresses to connect from, in turn: one, or a range of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAddresses {
    first: IpAddr,
    count: usize,
}

impl LocalAddresses {
    /// The address that the connection with this number is made from.
    pub fn nth(&self, serial: usize) -> IpAddr {
        let step = serial % self.count;
        match self.first {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() + step as u32)),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() + step as u128)),
        }
    }
}

impl fmt::Display for LocalAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "{}", self.first),
            count => write!(f, "{}-{}", self.first, self.nth(count - 1)),
        }
    }
}

impl FromStr for LocalAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<LocalAddresses, String> {
        let parse = |ip: &str| {
            ip.parse::<IpAddr>()
                .map_err(|_| "write one address, or FIRST-LAST, as in 127.0.1.1-127.0.1.50".to_string())
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (parse(first)?, parse(last)?),
            None => (parse(text)?, parse(text)?),
        };
        let distance = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                last.to_bits().checked_sub(first.to_bits()).map(u128::from)
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits().checked_sub(first.to_bits()),
            _ => return Err("both ends of a range are of one family".to_string()),
        };
        let distance = distance.ok_or("the range ends before it begins")?;
        match usize::try_from(distance).ok().filter(|distance| *distance < 1 << 20) {
            Some(distance) => Ok(LocalAddresses { first, count: distance + 1 }),
            None => Err("a range holds at most 1048576 addresses".to_string()),
        }
    }
}

pub fn shape() -> impl TypedValueParser<Value = Shape> {
    PossibleValuesParser::new(["echo", "churn", "idle", "fan-out"]).map(|name| match name.as_str() {
        "churn" => Shape::Churn,
        "idle" => Shape::Idle,
        "fan-out" => Shape::FanOut,
        _ => Shape::Echo,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_escapes_for_bytes() {
        assert_eq!("a\\r\\n\\x00\\xff\\\\".parse(), Ok(Text(b"a\r\n\0\xff\\".to_vec())));
        for wrong in ["", "\\", "\\q", "\\x1", "\\xg0"] {
            assert!(wrong.parse::<Text>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn local_addresses_take_turns() {
        let range: LocalAddresses = "127.0.1.254-127.0.2.1".parse().expect("a range");
        let all: Vec<String> = (0..5).map(|n| range.nth(n).to_string()).collect();
        assert_eq!(all, ["127.0.1.254", "127.0.1.255", "127.0.2.0", "127.0.2.1", "127.0.1.254"]);
        assert_eq!(range.to_string(), "127.0.1.254-127.0.2.1");
        for wrong in ["", "a", "10.0.0.2-10.0.0.1", "10.0.0.1-::1", "::-1::"] {
            assert!(wrong.parse::<LocalAddresses>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_url_is_answered_with_the_address_in_it() {
        let advice = |url: &str| address(url).expect_err("no address");
        assert_eq!(advice("http://127.0.0.1:9111/"), "this is a URL; write HOST:PORT, here 127.0.0.1:9111");
        assert_eq!(
            advice("https://a.example/x"),
            "this is a URL; write HOST:PORT, here a.example:443 with --tls"
        );
        assert!(address("[fe80::1%2]:80").is_ok());
    }
}
