//! The interface of filters: what transforms the bytes between the wire and a service, such as TLS.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::base::address::Address;

/// A transform of one connection's bytes. It does no I/O; the loop moves the bytes.
///
/// ```text
///                    ┌──────── open ────────▶ data
///     wire ◀──▶ loop │        filter                service
///                    └──────── seal ◀──────── send
///                              └▶ out: messages of the filter itself (a handshake, an alert)
/// ```
///
/// The feature `tls` brings one ([`tls`](crate::tls)); a [`FilterConfig`] makes one for each connection. Bytes that a
/// call appends to `out` are sent in the same turn, before anything that is sealed later.
///
/// # Errors end the connection
///
/// An [`error`](Opened::error), or an error of [`seal`](Filter::seal), closes the connection with
/// [`CloseReason::Handshake`](crate::CloseReason::Handshake) before the filter is ready, else with
/// [`CloseReason::Tls`](crate::CloseReason::Tls), whatever the filter is. So does FIN without
/// [`peer_ended`](Opened::peer_ended) before it, with [`CloseReason::Truncated`](crate::CloseReason::Truncated).
///
/// # Examples
///
/// A filter without a handshake that inverts every bit, and announces its end with a zero byte (so it cannot carry
/// bytes of value 255):
///
/// ```
/// use std::io;
/// use tidemill::{Address, Filter, FilterConfig, FilterFactory, FilterInfo, Opened};
///
/// struct Inverter;
///
/// impl Filter for Inverter {
///     fn buffered(&self) -> usize {
///         0
///     }
///     fn open(&mut self, wire: &mut [u8], _: &mut Vec<u8>) -> Opened {
///         let end = wire.iter().position(|&byte| byte == 0);
///         let plaintext = end.unwrap_or(wire.len());
///         wire[..plaintext].iter_mut().for_each(|byte| *byte = !*byte);
///         Opened { plaintext, ready: true, peer_ended: end.is_some(), error: None }
///     }
///     fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
///         if plain.contains(&255) {
///             return Err("a byte of value 255 cannot be sent".to_string());
///         }
///         out.extend(plain.iter().map(|byte| !byte));
///         Ok(())
///     }
///     fn seal_end(&mut self, out: &mut Vec<u8>) {
///         out.push(0);
///     }
///     fn info(&self) -> FilterInfo {
///         FilterInfo::default()
///     }
/// }
///
/// struct Inverters;
///
/// impl FilterFactory for Inverters {
///     fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
///         Ok(Box::new(Inverter))
///     }
/// }
///
/// let config = FilterConfig::new(Inverters);
/// # let _ = config;
/// let mut sealed = Vec::new();
/// Inverter.seal(b"hello", &mut sealed).unwrap();
/// let opened = Inverter.open(&mut sealed, &mut Vec::new());
/// assert_eq!((&sealed[..opened.plaintext], opened.ready), (&b"hello"[..], true));
/// ```
pub trait Filter {
    /// How many received bytes the filter keeps because they are not a complete record yet.
    fn buffered(&self) -> usize;

    /// Decrypts received bytes. `wire` begins with room for the bytes that the filter has
    /// [buffered](Filter::buffered); the new bytes are behind that room. The plaintext is to be put at the front of
    /// `wire`. The first call comes before any byte has arrived, so that a client can send the first message of its
    /// handshake.
    fn open(&mut self, wire: &mut [u8], out: &mut Vec<u8>) -> Opened;

    /// Encrypts plaintext and appends it to `out`. Called only after [`open`](Filter::open) has returned
    /// [`ready`](Opened::ready), and not after [`seal_end`](Filter::seal_end).
    ///
    /// # Errors
    ///
    /// When the filter cannot go on. The message is logged, and the connection ends.
    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String>;

    /// Appends the message that announces the end of the stream (in TLS, close_notify).
    fn seal_end(&mut self, out: &mut Vec<u8>);

    /// The result of the handshake.
    fn info(&self) -> FilterInfo;
}

/// The result of one call of [`Filter::open`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of plaintext at the front of `wire`.
    pub plaintext: usize,
    /// Whether the handshake is complete, so that [`seal`](Filter::seal) may be called.
    pub ready: bool,
    /// Whether the peer has announced the end of its stream.
    pub peer_ended: bool,
    /// Why the filter cannot go on, for the log: invalid bytes, or a certificate that is not trusted. `plaintext` from
    /// before the error is still delivered.
    pub error: Option<String>,
}

/// The result of a handshake: see [`Socket::filter_info`](crate::Socket::filter_info).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilterInfo {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite, by its name in IANA's registry.
    pub cipher: &'static str,
    /// The server name that the client requested (SNI), if it did.
    pub server_name: Option<String>,
    /// The protocol negotiated by ALPN, if there is one.
    pub protocol: Option<Vec<u8>>,
    /// The certificate chain that the peer sent, in DER, its own certificate first. Empty when it sent none.
    pub peer_certificates: Vec<Vec<u8>>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// Makes one filter per connection.
pub trait FilterFactory: Send + Sync {
    /// Makes the filter of a connection with this peer: the address it connects from, or the address that was dialed.
    ///
    /// # Errors
    ///
    /// When no filter can be made; the connection is closed before `open` or `connected`.
    fn filter(&self, peer: &Address) -> io::Result<Box<dyn Filter>>;
}

/// Which filter connections get: for [`ListenOptions`](crate::ListenOptions::filter),
/// [`DialOptions`](crate::DialOptions::filter) or [`Socket::start_filter`](crate::Socket::start_filter). Cheap to
/// clone. [`tls::Server`](crate::tls::Server) and [`tls::Client`](crate::tls::Client) make such values. Two are equal
/// if one is a clone of the other.
#[derive(Clone)]
pub struct FilterConfig(Arc<dyn FilterFactory>);

impl FilterConfig {
    /// Uses filters made by `factory`.
    pub fn new(factory: impl FilterFactory + 'static) -> FilterConfig {
        FilterConfig(Arc::new(factory))
    }

    /// The same filters, made for another peer address than that of the connection. For
    /// [`start_filter`](crate::Socket::start_filter) on an open connection, where the certificate is to be verified for
    /// a host name and the connection knows only an IP address.
    pub fn for_peer(&self, peer: Address) -> FilterConfig {
        FilterConfig::new(ForPeer { config: self.clone(), peer })
    }

    pub(crate) fn filter(&self, peer: &Address) -> io::Result<Box<dyn Filter>> {
        self.0.filter(peer)
    }
}

struct ForPeer {
    config: FilterConfig,
    peer: Address,
}

impl FilterFactory for ForPeer {
    fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
        self.config.filter(&self.peer)
    }
}

impl fmt::Debug for FilterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FilterConfig")
    }
}

/// Compares identity, because a factory cannot be compared.
impl PartialEq for FilterConfig {
    fn eq(&self, other: &FilterConfig) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for FilterConfig {}
