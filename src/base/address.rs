//! Addresses to listen on and to dial, and the compact address of a peer.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::vec;

/// The address of one end of a connection, or of a listener.
///
/// | written as | is |
/// | --- | --- |
/// | `127.0.0.1:9001`, `[::1]:9001` | an IP address and a port |
/// | `localhost:9001` | a host name to look up, and a port |
/// | `unix:/run/app.sock` | a Unix-domain socket at a path |
/// | `unix:@app` | a Unix-domain socket in Linux's abstract namespace |
/// | `unix:` | an unnamed Unix-domain socket; printed only, it cannot be dialed |
///
/// # Examples
///
/// ```
/// use tidemill::Address;
///
/// let address: Address = "localhost:9001".parse().unwrap();
/// assert_eq!(address, Address::Name { host: "localhost".into(), port: 9001 });
/// assert_eq!(Address::from(([127, 0, 0, 1], 80)).to_string(), "127.0.0.1:80");
/// assert_eq!(Address::try_from(("localhost", 9001)), Ok(address));
///
/// let error = "::1:9001".parse::<Address>().unwrap_err();
/// assert_eq!(error.to_string(), "\"::1:9001\" is not an address: write IPv6 in brackets, as in [::1]:9001");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
    Inet(SocketAddr),
    /// A host name to be looked up, and a port.
    Name {
        /// The host name.
        host: Box<str>,
        /// The port.
        port: u16,
    },
    /// A Unix-domain socket at a path.
    Unix(PathBuf),
    /// A Unix-domain socket in Linux's abstract namespace: it has no file, and ends with its last descriptor.
    Abstract(Box<str>),
    /// A Unix-domain socket without a name; clients rarely have one.
    Unnamed,
}

/// Why a text is not an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

/// The longest name of the domain name system, in characters (RFC 1035, 2.3.4).
const HOST_MAX: usize = 253;

/// The longest path of a Unix-domain socket, in bytes: `sun_path` has 108 bytes on Linux, and 104 on the BSDs and
/// macOS, of which one is a zero byte at the end. A longer path is refused and not cut, because the shorter path may be
/// that of another socket.
pub(crate) const PATH_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

impl Address {
    /// The IP address and port, if it is an [`Inet`](Address::Inet) address.
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Address::Inet(address) => Some(*address),
            _ => None,
        }
    }

    /// The IP address, if it has one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.inet().map(|address| address.ip())
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Inet(address) => Some(address.port()),
            Address::Name { port, .. } => Some(*port),
            _ => None,
        }
    }

    /// Whether it is a Unix-domain socket of any kind.
    pub fn is_unix(&self) -> bool {
        matches!(self, Address::Unix(_) | Address::Abstract(_) | Address::Unnamed)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let wrong = |why| AddressError { text: text.to_string(), reason: why };
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path).map_err(wrong);
        }
        if let Ok(address) = text.parse() {
            return Ok(Address::Inet(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("a port is missing, as in :9001"))?;
        if host.is_empty() {
            return Err(wrong("a host is missing in front of the port"));
        }
        if host.contains(':') {
            return Err(wrong("write IPv6 in brackets, as in [::1]:9001"));
        }
        if port.is_empty() || !port.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(wrong("a port is a number"));
        }
        let port = port.parse().map_err(|_| wrong("a port is at most 65535"))?;
        if host.len() > HOST_MAX {
            return Err(wrong("a name has at most 253 characters"));
        }
        // Digits and dots that are not an IPv4 address are refused and not looked up: resolvers disagree about the
        // meaning of 127.1 and 010.0.0.1.
        let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if numeric || host.bytes().any(|byte| !byte.is_ascii_graphic() || b"[]/%@".contains(&byte)) {
            return Err(wrong("the host is neither an IP address nor a name"));
        }
        Ok(Address::Name { host: host.into(), port })
    }
}

fn unix(path: &str) -> Result<Address, &'static str> {
    if path.contains('\0') {
        return Err("a path cannot contain a zero byte");
    }
    if path.len() > PATH_MAX {
        return Err(if PATH_MAX == 107 {
            "the path of a Unix-domain socket has at most 107 bytes"
        } else {
            "the path of a Unix-domain socket has at most 103 bytes"
        });
    }
    match path.strip_prefix('@') {
        Some("") => Err("an abstract name is missing behind the @"),
        Some(name) => Ok(Address::Abstract(name.into())),
        None if path.is_empty() => Err("a path is missing, as in unix:/run/app.sock"),
        None => Ok(Address::Unix(path.into())),
    }
}

/// An IPv4 address that is mapped into IPv6 is written as IPv4: on a listener for both, a client then has the same name
/// as on one for IPv4.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(SocketAddr::V6(address)) => match address.ip().to_ipv4_mapped() {
                Some(ip) => write!(f, "{ip}:{}", address.port()),
                None => write!(f, "{address}"),
            },
            Address::Inet(address) => write!(f, "{address}"),
            Address::Name { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{name}"),
            Address::Unnamed => write!(f, "unix:"),
        }
    }
}

impl AddressError {
    /// What is wrong, without the text itself.
    pub fn reason(&self) -> &str {
        self.reason
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an address: {}", self.text, self.reason)
    }
}

impl std::error::Error for AddressError {}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Inet(address)
    }
}

impl From<SocketAddrV4> for Address {
    fn from(address: SocketAddrV4) -> Address {
        Address::Inet(address.into())
    }
}

impl From<SocketAddrV6> for Address {
    fn from(address: SocketAddrV6) -> Address {
        Address::Inet(address.into())
    }
}

impl From<&SocketAddr> for Address {
    fn from(address: &SocketAddr) -> Address {
        Address::Inet(*address)
    }
}

/// One `impl` for each kind of IP address: one for all that convert into `IpAddr` would rule out the pair of a host and
/// a port below.
macro_rules! from_ip_and_port {
    ($($ip:ty),*) => {$(
        impl From<($ip, u16)> for Address {
            fn from((ip, port): ($ip, u16)) -> Address {
                Address::Inet(SocketAddr::new(ip.into(), port))
            }
        }
    )*};
}

from_ip_and_port!(IpAddr, Ipv4Addr, Ipv6Addr, [u8; 4], [u8; 16]);

/// A host and a port: `("localhost", 80)`. The host is a name or an IP address, IPv6 with or without
/// brackets.
impl TryFrom<(&str, u16)> for Address {
    type Error = AddressError;

    fn try_from((host, port): (&str, u16)) -> Result<Address, AddressError> {
        match host.parse::<IpAddr>() {
            Ok(ip) => Ok(Address::from((ip, port))),
            Err(_) if host.starts_with("unix:") => {
                Err(AddressError { text: host.to_string(), reason: "a path has no port" })
            }
            Err(_) => format!("{host}:{port}").parse(),
        }
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Address {
        address.clone()
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Address {
        Address::Unix(path.to_path_buf())
    }
}

impl TryFrom<&str> for Address {
    type Error = AddressError;

    fn try_from(text: &str) -> Result<Address, AddressError> {
        text.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Address, AddressError> {
        text.parse()
    }
}

impl TryFrom<&String> for Address {
    type Error = AddressError;

    fn try_from(text: &String) -> Result<Address, AddressError> {
        text.parse()
    }
}

/// For the blocking sockets of the standard library. Looking up a name blocks; a Unix-domain address is an error.
impl ToSocketAddrs for Address {
    type Iter = vec::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<vec::IntoIter<SocketAddr>> {
        match self {
            Address::Inet(address) => Ok(vec![*address].into_iter()),
            Address::Name { host, port } => (&**host, *port).to_socket_addrs(),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{self} is not an IP address"))),
        }
    }
}

/// The address of a peer in 19 bytes; every connection holds one. An IPv4 address is stored as mapped into IPv6. Of a
/// Unix-domain address only the family is stored. Only a link-local address needs a scope, and such an address has 54
/// bits that are zero (RFC 4291, section 2.5.6): the scope is stored in them, as the kernels of the BSDs do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PeerAddress {
    ip: [u8; 16],
    /// In bytes, so that nothing in here is aligned and no byte is padding.
    port: [u8; 2],
    family: PeerFamily,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PeerFamily {
    V4,
    V6,
    LinkLocal,
    Unix,
}

/// The bytes of a link-local address in which its scope is stored.
const SCOPE: Range<usize> = 4..8;

impl PeerAddress {
    pub(crate) const UNIX: PeerAddress = PeerAddress { ip: [0; 16], port: [0; 2], family: PeerFamily::Unix };

    pub(crate) fn is_unix(self) -> bool {
        self.family == PeerFamily::Unix
    }

    pub(crate) fn inet(self) -> Option<SocketAddr> {
        let (ip, port) = (Ipv6Addr::from(self.ip), u16::from_ne_bytes(self.port));
        match self.family {
            PeerFamily::V4 => Some(SocketAddr::new(IpAddr::V6(ip).to_canonical(), port)),
            PeerFamily::V6 => Some(SocketAddr::new(IpAddr::V6(ip), port)),
            PeerFamily::LinkLocal => {
                let mut bytes = self.ip;
                let scope = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                bytes[SCOPE].fill(0);
                Some(SocketAddr::V6(SocketAddrV6::new(bytes.into(), port, 0, scope)))
            }
            PeerFamily::Unix => None,
        }
    }

    /// The IP address; an IPv4 address that is mapped into IPv6 is returned as IPv4.
    pub(crate) fn ip(self) -> Option<IpAddr> {
        self.inet().map(|address| address.ip().to_canonical())
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> PeerAddress {
        match address {
            SocketAddr::V4(v4) => {
                let ip = v4.ip().to_ipv6_mapped().octets();
                PeerAddress { ip, port: v4.port().to_ne_bytes(), family: PeerFamily::V4 }
            }
            SocketAddr::V6(v6) => {
                let mut ip = v6.ip().octets();
                let mut family = PeerFamily::V6;
                if v6.ip().is_unicast_link_local() && ip[SCOPE] == [0; 4] {
                    ip[SCOPE].copy_from_slice(&v6.scope_id().to_be_bytes());
                    family = PeerFamily::LinkLocal;
                }
                PeerAddress { ip, port: v6.port().to_ne_bytes(), family }
            }
        }
    }
}

impl From<&Address> for PeerAddress {
    /// A host name has no address yet; it becomes the unspecified address, 0.0.0.0.
    fn from(address: &Address) -> PeerAddress {
        match address {
            Address::Inet(address) => PeerAddress::from(*address),
            Address::Name { port, .. } => PeerAddress::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port))),
            _ => PeerAddress::UNIX,
        }
    }
}

impl From<PeerAddress> for Address {
    fn from(peer: PeerAddress) -> Address {
        peer.inet().map_or(Address::Unnamed, Address::Inet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_address_parses_back() {
        let texts =
            ["127.0.0.1:80", "[::1]:0", "[fe80::1%3]:443", "a.example:65535", "unix:/tmp/a b", "unix:@x"];
        for text in texts {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_addresses_are_rejected_before_any_system_call() {
        let long = format!("unix:/{}", "x".repeat(PATH_MAX));
        let wrong = [
            "",
            "localhost",
            ":80",
            "host:",
            "host:65536",
            "host:-1",
            "host:+1",
            "host:0x50",
            "::1:80",
            "[::1]",
            "[::1]:x",
            "ho st:80",
            "host/path:80",
            "127.1:80",
            "010.0.0.1:80",
            "1.2.3.4.5:80",
            "256.0.0.1:80",
            "[1.2.3.4]:80",
            "[::1%]:80",
            "unix:",
            "unix:@",
            "unix:/a\0b",
            &long,
        ];
        for text in wrong {
            assert!(text.parse::<Address>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("unix:/{}", "x".repeat(PATH_MAX - 1)).parse::<Address>().is_ok());
        assert!(format!("{}:1", "x".repeat(HOST_MAX + 1)).parse::<Address>().is_err());
    }

    #[test]
    fn a_host_and_a_port_are_an_address_as_their_text_is() {
        for (host, text) in [
            ("a.example", "a.example:80"),
            ("127.0.0.1", "127.0.0.1:80"),
            ("::1", "[::1]:80"),
            ("[::1]", "[::1]:80"),
        ] {
            assert_eq!(Address::try_from((host, 80)), text.parse(), "{host}");
        }
        for wrong in ["", "a:1", "unix:/run/app.sock", "127.1", "ho st"] {
            assert!(Address::try_from((wrong, 80)).is_err(), "{wrong:?} was accepted");
        }
        let inet: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert_eq!(Address::from(&inet), Address::Inet(inet));
    }

    #[test]
    fn a_peer_address_converts_back_unchanged() {
        for text in ["127.0.0.1:80", "[::1]:9001", "[::ffff:10.0.0.1]:7", "[fe80::1%3]:443", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(PeerAddress::from(address).inet(), Some(address));
        }
        assert_eq!(Address::from(PeerAddress::UNIX), Address::Unnamed);
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:7".parse().unwrap();
        assert_eq!(PeerAddress::from(mapped).ip(), Some(IpAddr::from([10, 0, 0, 1])));
    }
}
