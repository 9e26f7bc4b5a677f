//! Routes by what a TLS client asks for in its ClientHello.

use std::fmt;
use std::str::FromStr;

use super::{Proxy, RouteChoice, Upstream};
use crate::tls::ClientHello;

/// Which TLS clients take a route.
///
/// Written as `sni=NAME` or `alpn=PROTOCOL`. A name is a host name, or `*.` and a host name: that stands for any single
/// label in front, as in a certificate.
///
/// # Examples
///
/// ```
/// use tidemill::services::RouteMatch;
/// use tidemill::tls::ClientHello;
///
/// let hello = |name: &str| ClientHello { server_name: Some(name.to_string()), alpn: vec![b"h2".to_vec()] };
/// let any: RouteMatch = "sni=*.example.org".parse()?;
/// assert!(any.matches(&hello("db1.example.org")));
/// assert!(!any.matches(&hello("example.org")) && !any.matches(&hello("a.b.example.org")));
/// assert!("alpn=h2".parse::<RouteMatch>()?.matches(&hello("example.org")));
/// assert!(any.covers(&"sni=DB1.example.org".parse()?));
/// # Ok::<(), tidemill::services::RouteError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RouteMatch {
    /// The server name (SNI), in lower case.
    Name(String),
    /// The part of the server name behind its first label, in lower case.
    AnyLabelOf(String),
    /// One of the protocols that the client offers (ALPN).
    Alpn(Vec<u8>),
}

/// Why a text is no [`RouteMatch`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteError(String);

impl RouteMatch {
    /// Whether a client takes the route.
    pub fn matches(&self, hello: &ClientHello) -> bool {
        match self {
            RouteMatch::Name(name) => hello.server_name.as_ref() == Some(name),
            RouteMatch::AnyLabelOf(suffix) => {
                hello.server_name.as_deref().is_some_and(|name| is_below(name, suffix))
            }
            RouteMatch::Alpn(protocol) => hello.alpn.contains(protocol),
        }
    }

    /// Whether all clients that match the other match this one too.
    pub fn covers(&self, other: &RouteMatch) -> bool {
        match (self, other) {
            (RouteMatch::AnyLabelOf(suffix), RouteMatch::Name(name)) => is_below(name, suffix),
            _ => self == other,
        }
    }
}

/// Whether a name has one label in front of a suffix.
fn is_below(name: &str, suffix: &str) -> bool {
    name.split_once('.').is_some_and(|(_, rest)| rest == suffix)
}

impl Proxy {
    /// Passes TLS clients on without decrypting, by their ClientHello: the first route that matches decides. See
    /// [`route`](Proxy::route) for clients without a match and for the bounds. A client that does not speak TLS, or
    /// whose first message rustls does not take for a ClientHello, has no match.
    pub fn route_tls(self, routes: Vec<(RouteMatch, Upstream)>) -> Proxy {
        let (matches, upstreams): (Vec<RouteMatch>, Vec<Upstream>) = routes.into_iter().unzip();
        self.route(upstreams, move |first| match ClientHello::parse(first) {
            Ok(None) => RouteChoice::Undecided,
            Ok(Some(hello)) => matches
                .iter()
                .position(|one| one.matches(&hello))
                .map_or(RouteChoice::Default, RouteChoice::To),
            Err(_) => RouteChoice::Default,
        })
    }
}

impl FromStr for RouteMatch {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<RouteMatch, RouteError> {
        let wrong = |what: String| Err(RouteError(what));
        match text.split_once('=') {
            Some(("sni", name)) => {
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                let host = name.strip_prefix("*.").unwrap_or(&name);
                let is_label = |label: &str| {
                    (1..=63).contains(&label.len())
                        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
                };
                if host.len() > 253 || !host.split('.').all(is_label) {
                    return wrong(format!("{name:?} is no host name: write a.example or *.example"));
                }
                // RFC 6066, section 3: a literal address is not sent as a server name.
                if host.parse::<std::net::IpAddr>().is_ok() {
                    return wrong(format!("{name:?} is an address, and clients send names only"));
                }
                Ok(match name.strip_prefix("*.") {
                    Some(suffix) => RouteMatch::AnyLabelOf(suffix.to_string()),
                    None => RouteMatch::Name(name),
                })
            }
            Some(("alpn", protocol)) if (1..=255).contains(&protocol.len()) => {
                Ok(RouteMatch::Alpn(protocol.as_bytes().to_vec()))
            }
            Some(("alpn", _)) => wrong("the name of a protocol (ALPN) has 1 to 255 bytes".to_string()),
            _ => wrong("a route begins with sni=NAME or alpn=PROTOCOL".to_string()),
        }
    }
}

impl fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteMatch::Name(name) => write!(f, "sni={name}"),
            RouteMatch::AnyLabelOf(suffix) => write!(f, "sni=*.{suffix}"),
            RouteMatch::Alpn(protocol) => write!(f, "alpn={}", String::from_utf8_lossy(protocol)),
        }
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RouteError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> RouteMatch {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_route_is_written_as_it_is_read() {
        for text in
            ["sni=a.example", "sni=*.a.example", "alpn=h2", "alpn=acme-tls/1", "sni=localhost", "sni=_x.a"]
        {
            assert_eq!(parsed(text).to_string(), text);
        }
        assert_eq!(parsed("sni=A.Example."), parsed("sni=a.example"));
        for wrong in
            ["sni=", "sni=a..b", "sni=*", "sni=a.*.b", "sni=10.0.0.1", "alpn=", "host=a", "a.example"]
        {
            assert!(wrong.parse::<RouteMatch>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_route_covers_what_could_never_reach_a_later_one() {
        assert!(parsed("sni=*.a").covers(&parsed("sni=b.a")) && parsed("alpn=h2").covers(&parsed("alpn=h2")));
        for (first, later) in
            [("sni=b.a", "sni=*.a"), ("sni=*.a", "sni=c.b.a"), ("sni=*.a", "sni=a"), ("alpn=h2", "sni=a")]
        {
            assert!(!parsed(first).covers(&parsed(later)), "{first} {later}");
        }
    }
}
