//! What only few connections have, so that the others need not pay for it.

use std::time::Duration;

use crate::base::address::{Address, PeerAddress};
use crate::base::filter::{Filter, FilterConfig};
use crate::base::id::ConnId;
use crate::base::tick::Tick;
use crate::config::dial::{DialOptions, SocketOption};
use crate::parts::token_bucket::TokenBucket;

/// State that a connection has beside the usual: it was dialed, is piped, is limited in its rate, or has clocks of its
/// own. The connection holds one by a pointer, which is null in all others; and what of it is rarer still is behind
/// pointers again, so that a proxied pair need not pay for it.
#[derive(Default)]
pub(crate) struct Optional {
    /// Who asked for it, if it was dialed.
    pub(crate) dialed_by: Option<ConnId>,
    /// The other end of its pipe, and how many reads in a row were full.
    pub(crate) pipe_peer: Option<ConnId>,
    pub(crate) full_reads: u8,
    /// The other end of its pipe was cut off: a reset follows the queue, neither a close_notify nor a FIN.
    pub(crate) incomplete: bool,
    /// Whose rate it shares.
    pub(crate) group: Option<u16>,
    /// Its own address, where the table of the machine's addresses does not have it.
    pub(crate) local: Option<PeerAddress>,
    pub(crate) dial: Option<Box<Dial>>,
    pub(crate) overrides: Option<Box<Overrides>>,
    pub(crate) tls: Option<Box<Tls>>,
}

/// Of one that was dialed: until it is connected, or as long as it would be dialed again.
#[derive(Debug, Default)]
pub(crate) struct Dial {
    /// What was asked for, and how.
    pub(crate) to: Option<Address>,
    pub(crate) options: DialOptions,
    /// The lookup it waits for.
    pub(crate) lookup: Option<u64>,
    /// When the next address is to be tried.
    pub(crate) next_attempt: Option<Tick>,
    /// How often dialing has failed in a row before.
    pub(crate) failed_attempts: u32,
    /// Asked for before there was a stream to ask it of.
    pub(crate) pending_options: Vec<SocketOption>,
}

/// Of a connection with a filter.
pub(crate) struct Tls {
    /// How to make the filter; until the handshake starts.
    pub(crate) config: Option<FilterConfig>,
    /// From then on.
    pub(crate) filter: Option<Box<dyn Filter>>,
    /// When the handshake must be complete.
    pub(crate) deadline: Option<Tick>,
    /// How many bytes of this turn's list were sent before the filter was asked for, and go as they are.
    pub(crate) clear_prefix: usize,
    /// Whether `open` or `connected` is called when the handshake is complete; else `filter_started` is.
    pub(crate) open_pending: bool,
    /// Whether the service has got no byte since the handshake.
    pub(crate) no_plaintext_yet: bool,
    /// Why it could not go on.
    pub(crate) error: Option<Box<str>>,
    /// What follows the bytes that are still to be delivered: the peer's end, or why the filter failed.
    pub(crate) pending_end: Option<Result<(), Box<str>>>,
}

/// Limits that differ from its service's, and what else few have.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) idle: Option<Option<Duration>>,
    pub(crate) read_idle: Option<IdleTimer>,
    pub(crate) write_idle: Option<IdleTimer>,
    pub(crate) alarm: Option<Alarm>,
    /// How fast it may be read, and when there will be tokens again.
    pub(crate) bucket: Option<TokenBucket>,
    pub(crate) refill: Option<Tick>,
    /// Input thrown away while closing.
    pub(crate) discarded: usize,
    /// When it was resumed before its first byte: the clock of that byte begins here.
    pub(crate) resumed: Option<Tick>,
}

/// A clock for one direction: how long nothing may move, and when something last did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleTimer {
    pub(crate) span: Duration,
    pub(crate) since: Tick,
}

/// Which clock has run out when [`Service::idle`](crate::Service::idle) is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum IdleKind {
    /// No byte has moved either way.
    #[default]
    Both,
    /// No byte has arrived.
    Reading,
    /// The kernel has taken no byte.
    Writing,
}

/// An alarm that a service has set for one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alarm {
    pub(crate) when: Tick,
    pub(crate) every: Option<Duration>,
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
            error: None,
            pending_end: None,
        }
    }
}

impl Optional {
    pub(crate) fn is_limited(&self) -> bool {
        self.group.is_some() || self.overrides.as_ref().is_some_and(|overrides| overrides.bucket.is_some())
    }

    pub(crate) fn overrides(&mut self) -> &mut Overrides {
        self.overrides.get_or_insert_default()
    }
}
