//! Peers that speak through a filter: TLS, or another one.

use super::{Bench, Peer};
use crate::base::address::Address;
use crate::base::filter::{Filter, FilterConfig, FilterInfo, Opened};
use crate::connection::tls::RECORD_MAX;

/// The peer's side of a filter.
pub(super) struct PeerFilter {
    filter: Box<dyn Filter>,
    last: Opened,
    /// Whether the other end has announced the end of its stream.
    other_ended: bool,
    /// What the test has said before the handshake was complete.
    to_seal: Vec<u8>,
    /// Whether FIN is to be sent, and whether its announcement was made.
    ends: bool,
    has_announced: bool,
    /// Sealed bytes, to be sent.
    out: Vec<u8>,
    /// Plaintext that the test has not looked at.
    pub(super) heard: Vec<u8>,
}

impl PeerFilter {
    pub(super) fn say(&mut self, plain: &[u8]) {
        self.to_seal.extend_from_slice(plain);
    }

    pub(super) fn end(&mut self) {
        self.ends = true;
    }

    /// Whether a FIN of the other end is a complete end of its stream.
    pub(super) fn accepts_end(&self) -> bool {
        self.other_ended || self.filter.ends_with_fin()
    }

    fn is_ready(&self) -> bool {
        self.last.ready && self.last.error.is_none()
    }

    /// Whether it has something to send. Nothing is sealed before the handshake is complete, or after an error.
    fn has_work(&self) -> bool {
        (self.is_ready() && !self.has_announced && !self.to_seal.is_empty()) || self.may_end()
    }

    /// Whether FIN is to be sent now.
    fn may_end(&self) -> bool {
        self.ends && (self.is_ready() || self.last.error.is_some())
    }

    /// Opens what has arrived.
    fn open(&mut self, arrived: &[u8]) {
        let mut wire = vec![0; self.filter.buffered()];
        wire.extend_from_slice(arrived);
        self.last = self.filter.open(&mut wire, &mut self.out);
        self.take_plaintext(&wire);
        let mut room = [0; RECORD_MAX];
        while self.last.more && self.last.error.is_none() {
            self.last = self.filter.more(&mut room, &mut self.out);
            self.take_plaintext(&room);
            assert!(
                !self.last.more || self.last.plaintext > 0,
                "a filter has more plaintext and returns none"
            );
        }
    }

    fn take_plaintext(&mut self, opened: &[u8]) {
        self.heard.extend_from_slice(&opened[..self.last.plaintext]);
        self.other_ended |= self.last.peer_ended;
    }

    /// Seals what is to be sent.
    fn seal(&mut self) {
        if !self.is_ready() || self.has_announced {
            return;
        }
        for plain in std::mem::take(&mut self.to_seal).chunks(RECORD_MAX) {
            if let Err(error) = self.filter.seal(plain, &mut self.out) {
                self.last.error = Some(error);
                return;
            }
        }
        if self.ends {
            self.filter.seal_end(&mut self.out);
            self.has_announced = true;
        }
    }
}

/// Filters: TLS between both ends.
///
/// ```
/// # #[cfg(feature = "tls")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tidemill::services::Echo;
/// use tidemill::testing::Bench;
/// use tidemill::tls::{CertifiedKey, Client, ClientOptions, RootCerts, Server, ServerOptions, Trust};
/// use tidemill::ListenOptions;
///
/// let made = rcgen::generate_simple_self_signed(["a.example".to_string()])?;
/// let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
/// let identity = CertifiedKey::from_pem(pem.as_bytes(), key.as_bytes())?;
/// let server = Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() })?;
/// let trust = Trust::Only(RootCerts::from_pem(pem.as_bytes())?);
/// let client = Client::new(ClientOptions { trust, ..ClientOptions::default() })?;
///
/// let mut bench = Bench::new();
/// let echo = bench.add(Echo::raw());
/// let options = ListenOptions { filter: Some(server.filter_config()), ..ListenOptions::default() };
/// bench.listen_with("10.0.0.2:443", echo, &options)?;
///
/// let ann = bench.connect();
/// bench.start_filter(ann, &client.filter_config(), "a.example:443");
/// bench.say(ann, "hello");
/// assert_eq!(bench.heard(ann), "hello");
/// assert_eq!(bench.filter_info(ann).unwrap().version, "TLSv1.3");
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "tls"))]
/// # fn main() {}
/// ```
impl Bench {
    /// From now on a peer speaks through a filter: [`say`](Bench::say) seals what the peer sends, and
    /// [`Bench::heard`] has what the filter has opened. For a client of a TLS service that is
    /// [`Client::filter_config`](crate::tls::Client::filter_config), for an upstream
    /// [`Server::filter_config`](crate::tls::Server::filter_config). `peer_name` is the other end as the filter is to
    /// know it: for a TLS client the name that the certificate must have, with a port.
    ///
    /// # Panics
    ///
    /// When `peer_name` is not an [`Address`], or the filter cannot be made for it.
    #[track_caller]
    pub fn start_filter(&mut self, peer: Peer, config: &FilterConfig, peer_name: &str) {
        let name: Address = peer_name.parse().unwrap_or_else(|error| panic!("{error}"));
        let filter = config.filter(&name).unwrap_or_else(|error| panic!("no filter for {name}: {error}"));
        let mut filter = PeerFilter {
            filter,
            last: Opened::default(),
            other_ended: false,
            to_seal: Vec::new(),
            ends: false,
            has_announced: false,
            out: Vec::new(),
            heard: Vec::new(),
        };
        filter.open(&[]);
        self.script.feed(peer.0, &std::mem::take(&mut filter.out));
        self.filters.insert(peer.0, filter);
        self.run();
    }

    /// The result of a peer's handshake. `None` before it is complete, and without a filter.
    pub fn filter_info(&self, peer: Peer) -> Option<FilterInfo> {
        let filter = self.filters.get(&peer.0).filter(|filter| filter.last.ready)?;
        Some(filter.filter.info())
    }

    /// Why the filter of a peer cannot go on, for example because it does not trust the certificate of the service.
    pub fn filter_error(&self, peer: Peer) -> Option<String> {
        self.filters.get(&peer.0)?.last.error.clone()
    }

    /// Moves bytes between the kernel and the peers' filters.
    pub(super) fn run_filters(&mut self) {
        for (&peer, filter) in &mut self.filters {
            let arrived = self.script.received(peer);
            if arrived.is_empty() && !filter.has_work() {
                continue;
            }
            if !arrived.is_empty() && filter.last.error.is_none() {
                filter.open(&arrived);
            }
            filter.seal();
            self.script.feed(peer, &std::mem::take(&mut filter.out));
            if filter.may_end() {
                filter.ends = false;
                self.script.end(peer);
            }
        }
    }

    pub(super) fn filters_are_quiet(&self) -> bool {
        let idle = |(&peer, filter): (&usize, &PeerFilter)| {
            !filter.has_work() && (filter.last.error.is_some() || !self.script.has_received(peer))
        };
        self.filters.iter().all(idle)
    }
}
