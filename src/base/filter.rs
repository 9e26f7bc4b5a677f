//! What stands between the wire and a service: TLS, or anything else that turns the one's bytes into the other's.

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
///                              └▶ out: what it says by itself (a handshake, an alert)
/// ```
///
/// The reactor's `tls` feature brings one; [`FilterConfig`] says how a connection gets its own. Whatever a call appends
/// to `out` is sent in the same turn, before anything that is sealed later.
pub trait Filter {
    /// How many bytes of the wire it keeps, because what they begin is not complete.
    fn buffered(&self) -> usize;

    /// Opens what has arrived. `wire` begins with room for the bytes it [kept](Filter::buffered); what arrived is
    /// behind that. The plain bytes are put at its front. Called first with nothing arrived, so that whoever begins the
    /// conversation can.
    fn open(&mut self, wire: &mut [u8], out: &mut Vec<u8>) -> Opened;

    /// Seals plain bytes for the wire. Only called when a call of `open` has said that it is
    /// [ready](Opened::ready), and not after [`seal_end`](Filter::seal_end).
    ///
    /// # Errors
    ///
    /// When it cannot go on; the text is for the log. The connection ends.
    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String>;

    /// Says that nothing more will be sent.
    fn seal_end(&mut self, out: &mut Vec<u8>);

    /// What has been agreed on.
    fn info(&self) -> FilterInfo;
}

/// What one call of [`Filter::open`] came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Bytes at the front that are for the service.
    pub plaintext: usize,
    /// Whether the handshake is done, so that bytes can be sealed.
    pub ready: bool,
    /// Whether the peer has said that it will send nothing more.
    pub peer_ended: bool,
    /// Why it cannot go on, for the log: what arrived was wrong, or the peer was not who it should be. What was opened
    /// before that still counts.
    pub error: Option<String>,
}

/// What two ends have agreed on: see [`Socket::filter_info`](crate::Socket::filter_info).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilterInfo {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite, by its name in IANA's registry.
    pub cipher: &'static str,
    /// The name of the server that the client asked for, if it did.
    pub server_name: Option<String>,
    /// The protocol that was agreed on by ALPN.
    pub protocol: Option<Vec<u8>>,
    /// The peer's certificate and those it sent along, in DER, its own first. Empty when it has shown none.
    pub peer_certificates: Vec<Vec<u8>>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// Makes the filters of one kind of connection.
pub trait FilterFactory: Send + Sync {
    /// One for a connection with this peer: the caller, or what was dialed.
    ///
    /// # Errors
    ///
    /// When there can be none; the connection ends before it begins.
    fn filter(&self, peer: &Address) -> io::Result<Box<dyn Filter>>;
}

/// How connections are secured: given to [`ListenOptions`](crate::ListenOptions::filter),
/// [`DialOptions`](crate::DialOptions::filter) or [`Socket::start_filter`](crate::Socket::start_filter). Cheap to
/// clone.
#[derive(Clone)]
pub struct FilterConfig(Arc<dyn FilterFactory>);

impl FilterConfig {
    /// By filters of your own.
    pub fn new(secure: impl FilterFactory + 'static) -> FilterConfig {
        FilterConfig(Arc::new(secure))
    }

    /// The same, for a peer who is known by another address than the connection's own: by a name, for a
    /// [connection that runs already](crate::Socket::start_filter).
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
        f.write_str("Security")
    }
}

/// The same one, not an equal one.
impl PartialEq for FilterConfig {
    fn eq(&self, other: &FilterConfig) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for FilterConfig {}
