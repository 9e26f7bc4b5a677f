//! The interface of filters: what transforms the bytes between the wire and a service, such as TLS.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::base::address::Address;
use crate::base::part::FILTERS;

/// A transform of one connection's bytes. It does no I/O; the loop moves the bytes.
///
/// ```text
///                    ┌─── open, more ───────▶ data
///     wire ◀──▶ loop │        filter                service
///                    └─── seal ◀───────────── send
///                              └▶ out: messages of the filter itself (a handshake, an alert)
/// ```
///
/// The feature `tls` brings one ([`tls`](crate::tls)); a [`FilterConfig`] makes one for each connection. A cipher, a
/// compressor and framing that a service is not to see are others.
///
/// # The order of calls
///
/// 1. [`open`](Filter::open), with no bytes, when the filter [starts](FilterFactory::starts_at_once). Then `open` again
///    for whatever arrives. What it appends to `out` is sent in the same turn, before anything that is sealed later.
/// 2. [`more`](Filter::more), while the last call has said that [more](Opened::more) is to come. Nothing is read from
///    the connection before that is over.
/// 3. [`seal`](Filter::seal) from the first [`ready`](Opened::ready) on, until [`seal_end`](Filter::seal_end), which is
///    called once, when the service has finished or closed and everything is sealed. Received bytes are opened on.
/// 4. [`ends_with_fin`](Filter::ends_with_fin), if the peer's FIN comes and it has not [announced](Opened::peer_ended)
///    its end. `true` calls [`end`](crate::Service::end); `false` closes the connection with
///    [`CloseReason::Truncated`](crate::CloseReason::Truncated).
///
/// # What is checked
///
/// Other connections' bytes may have been where a filter's bytes are now. So its answers are verified, and none of them
/// makes the loop read beyond what this connection has received: [`plaintext`](Opened::plaintext) is at most the length
/// of the slice, and 0 before `ready`; [`buffered`](Filter::buffered) is at most what was received, and does not grow
/// between two calls of `open`; a call of `more` adds at least a byte if it says that there is still more; `seal` adds
/// at least a byte, and removes none. A filter that breaks one of these rules ends its connection as if it had returned
/// an error, whose text names the rule. A panic unwinds out of [`Reactor::turn`](crate::Reactor::turn), as in a
/// callback.
///
/// # Errors end the connection
///
/// An [`error`](Opened::error), or an error of [`seal`](Filter::seal), closes the connection with
/// [`CloseReason::Handshake`](crate::CloseReason::Handshake) before the filter is ready, else with
/// [`CloseReason::Tls`](crate::CloseReason::Tls), whatever the filter is. The peer's FIN during a handshake is an error
/// too.
///
/// # What a filter may cost
///
/// The bytes that it has [buffered](Filter::buffered) are charged to [`Limits::memory`](crate::Limits::memory) and have
/// the minimum rate of an incomplete message; how many there may be, the filter decides. Other state is not counted:
/// [`Limits::connections`](crate::Limits::connections) bounds it. In one turn a connection opens at most
/// [`Limits::read_budget`](crate::Limits::read_budget) bytes of plaintext by `more`, and seals
/// [`Limits::write_budget`](crate::Limits::write_budget) bytes, so neither 64 KiB that expand to 64 MiB nor an answer
/// that shrinks to nothing keeps other connections waiting. Expanded bytes wait in the filter while the service is
/// paused or full; those that it does not take are bounded by
/// [`SocketLimits::message`](crate::SocketLimits::message). Rates ([`Socket::set_rate`](crate::Socket::set_rate)) count
/// bytes of the wire.
///
/// # Examples
///
/// A filter without a handshake and without an announced end, that inverts every bit:
///
/// ```
/// use std::io;
/// use tidemill::{Address, Filter, FilterConfig, FilterFactory, FilterInfo, Opened};
///
/// struct Inverter;
///
/// impl Filter for Inverter {
///     fn open(&mut self, wire: &mut [u8], _: &mut Vec<u8>) -> Opened {
///         wire.iter_mut().for_each(|byte| *byte = !*byte);
///         Opened { plaintext: wire.len(), ready: true, ..Opened::default() }
///     }
///     fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
///         out.extend(plain.iter().map(|byte| !byte));
///         Ok(())
///     }
///     fn ends_with_fin(&self) -> bool {
///         true
///     }
///     fn info(&self) -> FilterInfo {
///         FilterInfo::new("inverter", "")
///     }
/// }
///
/// struct Inverters;
///
/// impl FilterFactory for Inverters {
///     fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
///         Ok(Box::new(Inverter))
///     }
///     fn starts_at_once(&self) -> bool {
///         true
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
    /// How many received bytes the filter keeps because it cannot process them yet: an incomplete record, or input of
    /// which [more](Opened::more) is to come. The default is none.
    fn buffered(&self) -> usize {
        0
    }

    /// Decrypts received bytes. `wire` begins with zeros in place of the bytes that the filter has
    /// [buffered](Filter::buffered); the new bytes are behind them. The plaintext is to be put at the front of `wire`.
    /// The first call comes before any byte has arrived, so that a client can send the first message of its handshake.
    fn open(&mut self, wire: &mut [u8], out: &mut Vec<u8>) -> Opened;

    /// Goes on with [`open`](Filter::open), for a filter whose plaintext is longer than what has arrived. It is to be
    /// put at the front of `room`, which has at least one byte. The default returns none.
    fn more(&mut self, room: &mut [u8], out: &mut Vec<u8>) -> Opened {
        let _ = (room, out);
        Opened { ready: true, ..Opened::default() }
    }

    /// Encrypts plaintext, at most 16 KiB, and appends it to `out`. Called only after [`open`](Filter::open) has
    /// returned [`ready`](Opened::ready), and not after [`seal_end`](Filter::seal_end). The peer must be able to open
    /// all of `plain` with what was appended: a compressor flushes here, since nothing else would.
    ///
    /// # Errors
    ///
    /// When the filter cannot go on. The message is logged, and the connection ends.
    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String>;

    /// Appends the message that announces the end of the stream (in TLS, close_notify). The default appends nothing:
    /// the FIN, which follows, is the end.
    fn seal_end(&mut self, out: &mut Vec<u8>) {
        let _ = out;
    }

    /// Whether the stream is complete although the peer's FIN has come without an
    /// [announced end](Opened::peer_ended). Everything before the FIN has been opened. The default is `false`: an
    /// attacker can send a FIN, so a protocol that announces its end was cut off. A filter of records answers whether
    /// it is between two of them.
    fn ends_with_fin(&self) -> bool {
        false
    }

    /// The result of the handshake. The default is empty.
    fn info(&self) -> FilterInfo {
        FilterInfo::default()
    }
}

/// The result of one call of [`Filter::open`] or [`Filter::more`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of plaintext at the front of the slice.
    pub plaintext: usize,
    /// Whether plaintext is left for which the slice had no room, so that [`more`](Filter::more) must be called.
    pub more: bool,
    /// Whether the handshake is complete, so that [`seal`](Filter::seal) may be called.
    pub ready: bool,
    /// Whether the peer has announced the end of its stream. It ends when no [more](Opened::more) plaintext is left.
    pub peer_ended: bool,
    /// Why the filter cannot go on, for the log: invalid bytes, or a certificate that is not trusted. `plaintext` from
    /// before the error is still delivered, and nothing more is asked of the filter.
    pub error: Option<String>,
}

impl Opened {
    /// The rule of [`Filter`] that this result breaks, if it does. `room` is the length of the slice, and of at most
    /// `received` bytes the filter keeps `buffered`. `was_ready` is what it had said before.
    pub(crate) fn violation(
        &self,
        room: usize,
        received: usize,
        buffered: usize,
        was_ready: bool,
    ) -> Option<&'static str> {
        if self.plaintext > room {
            Some("the filter returned more plaintext than it had room for")
        } else if buffered > received {
            Some("the filter keeps more bytes than it has received")
        } else if self.plaintext > 0 && !self.ready && !was_ready {
            Some("the filter returned plaintext before it was ready")
        } else {
            None
        }
    }
}

/// The result of a handshake: see [`Socket::filter_info`](crate::Socket::filter_info).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilterInfo {
    /// `TLSv1.3` or `TLSv1.2`; of a filter of one's own, its name.
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

impl FilterInfo {
    /// The result of a handshake that has agreed on a version and a cipher and on nothing else. The other fields can be
    /// set afterwards.
    pub fn new(version: &'static str, cipher: &'static str) -> FilterInfo {
        FilterInfo { version, cipher, ..FilterInfo::default() }
    }
}

/// Makes one filter per connection.
pub trait FilterFactory: Send + Sync {
    /// Makes the filter of a connection with this peer: the address it connects from, or the address that was dialed.
    ///
    /// # Errors
    ///
    /// When no filter can be made; the connection is closed before `open` or `connected`.
    fn filter(&self, peer: &Address) -> io::Result<Box<dyn Filter>>;

    /// Whether the filter of an accepted connection is made as soon as it is accepted, and that of
    /// [`start_filter`](crate::Socket::start_filter) as soon as what was sent before is written. To be `true` if the
    /// server speaks first, or if there is no handshake.
    ///
    /// The default is `false`: the filter is made when the first byte of the peer has arrived and one of
    /// [`Limits::handshakes`](crate::Limits::handshakes) places is free, and
    /// [`open`](crate::Service::open) of the service comes after that. A handshake of TLS costs memory and time that a
    /// peer could otherwise have for a connect. The filters of dialed connections always start at once.
    fn starts_at_once(&self) -> bool {
        false
    }
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
        FILTERS.begin();
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

    pub(crate) fn starts_at_once(&self) -> bool {
        self.0.starts_at_once()
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

    fn starts_at_once(&self) -> bool {
        self.config.starts_at_once()
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
