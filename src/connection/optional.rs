//! State that only few connections have.
//!
//! Read before: `connection/mod.rs`. It is behind one pointer, which is null in all other connections: so an idle
//! accepted connection does not pay for dialing, rates, timeouts of its own, and TLS.

use std::time::Duration;

use crate::base::address::{Address, PeerAddress};
use crate::base::filter::{Filter, FilterConfig};
use crate::base::id::ConnId;
use crate::base::leaving::Leaving;
use crate::base::part::{DIALS, FILTERS};
use crate::base::tick::Tick;
use crate::config::dial::{DialOptions, SocketOption};
use crate::connection::Connection;
use crate::connection::alarm::Alarms;
use crate::connection::dial::Attempts;
use crate::connection::leaving::LeavingNotice;
use crate::parts::token_bucket::TokenBucket;

/// The optional state of a connection. Its larger parts are behind pointers of their own, so that the upstream of a
/// proxied pair, which was dialed and needs nothing else, does not pay for the others. The client of the pair has none.
#[derive(Default)]
pub(crate) struct Optional {
    pub(crate) dialed: Dialed,
    pub(crate) overrides: Option<Box<Overrides>>,
    pub(crate) tls: Option<Box<Tls>>,
}

/// The allocator hands out 48 bytes for it.
const _: () = assert!(size_of::<Optional>() <= 40);

/// How a connection was dialed.
#[derive(Default)]
pub(crate) enum Dialed {
    /// It was not.
    #[default]
    No,
    /// It is not connected yet, or all of the dial is needed: it is dialed again when it ends, or it is a Unix-domain
    /// socket, whose path is kept there.
    Whole(Box<Dial>),
    /// What can be asked of a connection once it is connected: see [`Dial`].
    Connected { by: Option<ConnId>, tag: u64, local_port: u16 },
}

/// A dial.
#[derive(Default)]
pub(crate) struct Dial {
    /// The connection in whose callback it was dialed.
    pub(crate) by: Option<ConnId>,
    /// The connection after whose end it was dialed again.
    pub(crate) after: Option<ConnId>,
    /// Its local port once it is connected, if its local IP address is in the table's list of places.
    pub(crate) local_port: u16,
    /// The address that was dialed; may be a name.
    pub(crate) to: Option<Address>,
    pub(crate) options: DialOptions,
    /// From its first attempt until it is connected or has ended.
    pub(crate) attempts: Option<Box<Attempts>>,
    /// The number of the lookup that it waits for.
    pub(crate) lookup: Option<u64>,
    /// When the next address is tried although no attempt has failed (RFC 8305).
    pub(crate) next_attempt: Option<Tick>,
    /// Whether it is dialed again although this side has ended it.
    pub(crate) redial: bool,
    /// How many dials have failed in a row before this one; the wait before a redial grows with it.
    pub(crate) failed_attempts: u32,
    /// Options that were set before there was a stream.
    pub(crate) pending_options: Vec<SocketOption>,
}

/// The state of a connection with a filter.
pub(crate) struct Tls {
    /// How to create the filter. Taken when the handshake starts.
    pub(crate) config: Option<FilterConfig>,
    /// The filter, from the start of the handshake on. For TLS it takes 3.7 KB, so it is not created before it is
    /// needed.
    pub(crate) filter: Option<Box<dyn Filter>>,
    /// When the handshake must be complete.
    pub(crate) deadline: Option<Tick>,
    /// How many bytes at the front of this turn's segments were sent before `start_filter`, and are not encrypted.
    pub(crate) clear_prefix: usize,
    /// Whether `open` or `connected` is called when the handshake is complete; else `filter_started` is.
    pub(crate) open_pending: bool,
    /// Whether the service has got no byte since the handshake: then `first_byte` applies.
    pub(crate) no_plaintext_yet: bool,
    /// Whether the filter has more plaintext than there was room for. Nothing is read before it has been opened.
    pub(crate) has_more: bool,
    /// Why the filter failed; given to `closed`.
    pub(crate) error: Option<Box<str>>,
    /// What happens after the decrypted bytes that are not delivered yet: the peer's end, or the failure of the filter.
    pub(crate) pending_end: Option<Result<(), Box<str>>>,
}

/// Limits of this connection that replace those of its service, and the state of rarely used features.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    /// Outer `None`: the service's limit applies. Inner `None`: the timeout is switched off.
    pub(crate) idle: Option<Option<Duration>>,
    pub(crate) read_idle: Option<IdleTimer>,
    pub(crate) write_idle: Option<IdleTimer>,
    pub(crate) alarms: Alarms,
    /// In place of `SocketLimits::queue`.
    pub(crate) queue: Option<usize>,
    /// Its own rate.
    pub(crate) bucket: Option<TokenBucket>,
    /// When it is read again, while it is throttled.
    pub(crate) refill: Option<Tick>,
    /// Bytes of input discarded while closing and lingering.
    pub(crate) discarded: usize,
    /// When it was resumed before its first byte: `first_byte` counts from here.
    pub(crate) resumed: Option<Tick>,
    /// Its pipe peer was cut off: a reset follows the queue and not a FIN, which would tell that the stream is
    /// complete.
    pub(crate) incomplete: bool,
    /// Whether its service is told when the peer leaves while it is not read.
    pub(crate) leaving: LeavingNotice,
    /// What it was told last, which is not told again.
    pub(crate) left: Option<Leaving>,
    /// The group whose rate it shares.
    pub(crate) group: Option<u16>,
    /// Its local address, if it is not in the table's list of places.
    pub(crate) local: Option<PeerAddress>,
}

/// An idle timeout of one direction: its length, and when a byte last moved in that direction.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct IdleTimer {
    pub(crate) span: Duration,
    pub(crate) since: Tick,
}

/// Which idle timeout has passed when [`Service::idle`](crate::Service::idle) is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum IdleKind {
    /// No byte has moved in either direction.
    #[default]
    Both,
    /// No byte has arrived.
    Reading,
    /// The kernel has accepted no byte.
    Writing,
}

impl Tls {
    pub(crate) fn new(
        config: FilterConfig,
        deadline: Option<Tick>,
        clear_prefix: usize,
        open_pending: bool,
    ) -> Tls {
        Tls {
            config: Some(config),
            filter: None,
            deadline,
            clear_prefix,
            open_pending,
            no_plaintext_yet: true,
            has_more: false,
            error: None,
            pending_end: None,
        }
    }
}

impl Overrides {
    /// Whether a rate applies, of its own or of a group.
    pub(crate) fn is_limited(&self) -> bool {
        self.group.is_some() || self.bucket.is_some()
    }
}

impl Optional {
    pub(crate) fn overrides(&mut self) -> &mut Overrides {
        self.overrides.get_or_insert_default()
    }
}

impl Connection {
    pub(crate) fn optional(&mut self) -> &mut Optional {
        self.optional.get_or_insert_default()
    }

    /// The dial, while all of it is kept.
    #[inline(always)]
    pub(crate) fn dial(&self) -> Option<&Dial> {
        match &self.optional.as_ref()?.dialed {
            Dialed::Whole(dial) if DIALS.has_begun() => Some(dial),
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn dial_mut(&mut self) -> Option<&mut Dial> {
        match &mut self.optional.as_mut()?.dialed {
            Dialed::Whole(dial) if DIALS.has_begun() => Some(dial),
            _ => None,
        }
    }

    /// The dial of a connection that is not connected yet. Panics if it is, or was not dialed.
    pub(crate) fn pending_dial(&mut self) -> &mut Dial {
        self.dial_mut().expect("a connection has its dial until it is connected")
    }

    /// The connection in whose callback it was dialed.
    pub(crate) fn dialed_by(&self) -> Option<ConnId> {
        match &self.optional.as_ref()?.dialed {
            Dialed::No => None,
            Dialed::Whole(dial) => dial.by,
            Dialed::Connected { by, .. } => *by,
        }
    }

    /// What `DialOptions::tag` was.
    pub(crate) fn tag(&self) -> u64 {
        match self.optional.as_ref().map(|optional| &optional.dialed) {
            None | Some(Dialed::No) => 0,
            Some(Dialed::Whole(dial)) => dial.options.tag,
            Some(Dialed::Connected { tag, .. }) => *tag,
        }
    }

    /// Gives back the memory of optional state that has come to nothing: a proxy sets an alarm for a client while it
    /// dials, and needs nothing of it afterwards.
    pub(crate) fn drop_empty_optional(&mut self) {
        let Some(optional) = &mut self.optional else { return };
        optional.overrides.take_if(|overrides| **overrides == Overrides::default());
        let is_empty = matches!(optional.dialed, Dialed::No) && optional.overrides.is_none();
        if is_empty && optional.tls.is_none() {
            self.optional = None;
        }
    }

    pub(crate) fn overrides(&self) -> Option<&Overrides> {
        self.optional.as_ref()?.overrides.as_deref()
    }

    pub(crate) fn overrides_mut(&mut self) -> Option<&mut Overrides> {
        self.optional.as_mut()?.overrides.as_deref_mut()
    }

    #[inline(always)]
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.optional.as_ref()?.tls.as_deref().filter(|_| FILTERS.has_begun())
    }

    #[inline(always)]
    pub(crate) fn tls_mut(&mut self) -> Option<&mut Tls> {
        self.optional.as_mut()?.tls.as_deref_mut().filter(|_| FILTERS.has_begun())
    }

    /// Whether what it is sent lacks an end that can be vouched for: see [`Overrides::incomplete`].
    pub(crate) fn is_incomplete(&self) -> bool {
        self.overrides().is_some_and(|overrides| overrides.incomplete)
    }

    /// Whether a rate applies, of its own or of a group.
    pub(crate) fn is_limited(&self) -> bool {
        self.overrides().is_some_and(Overrides::is_limited)
    }

    /// The group whose rate it shares.
    pub(crate) fn group(&self) -> Option<u16> {
        self.overrides()?.group
    }
}
