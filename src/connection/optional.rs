//! What only few connections have, so that the others need not pay for it.

use std::fmt;
use std::time::Duration;

use crate::base::address::{Address, Peer};
use crate::base::filter::{Filter, Security};
use crate::base::id::ConnId;
use crate::base::tick::Tick;
use crate::config::dial::{DialOptions, SocketOption};
use crate::parts::token_bucket::Bucket;

/// State that a connection has beside the usual: it was dialed, is piped, is limited in its rate, or has clocks of its
/// own. The connection holds one by a pointer, which is null in all others; and what of it is rarer still is behind
/// pointers again, so that a proxied pair need not pay for it.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Who asked for it, if it was dialed.
    pub(crate) by: Option<ConnId>,
    /// The other end of its pipe, and how many reads in a row were full.
    pub(crate) leg: Option<ConnId>,
    pub(crate) full_reads: u8,
    /// Whose rate it shares.
    pub(crate) group: Option<u16>,
    /// Its own address, where the table of the machine's addresses does not have it.
    pub(crate) local: Option<Peer>,
    pub(crate) dial: Option<Box<Dial>>,
    pub(crate) clocks: Option<Box<Clocks>>,
    pub(crate) seal: Option<Box<Seal>>,
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
    pub(crate) failures: u32,
    /// Asked for before there was a stream to ask it of.
    pub(crate) asked: Vec<SocketOption>,
}

/// Of one that is secured.
pub(crate) struct Seal {
    /// How; until the handshake begins.
    pub(crate) how: Option<Security>,
    /// From then on.
    pub(crate) filter: Option<Box<dyn Filter>>,
    /// When the handshake must be done.
    pub(crate) by: Option<Tick>,
    /// Queued bytes that go as they are, because they were sent before that.
    pub(crate) bare: usize,
    /// Why it could not go on.
    pub(crate) broken: Option<Box<str>>,
}

/// Limits that differ from its service's, and what else few have.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    pub(crate) idle: Option<Option<Duration>>,
    pub(crate) reading: Option<Quiet>,
    pub(crate) writing: Option<Quiet>,
    pub(crate) silent: Silent,
    pub(crate) alarm: Option<Alarm>,
    /// How fast it may be read, and when there will be tokens again.
    pub(crate) bucket: Option<Bucket>,
    pub(crate) refill: Option<Tick>,
    /// Input thrown away while closing.
    pub(crate) discarded: usize,
}

/// A clock for one direction: how long nothing may move, and when something last did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quiet {
    pub(crate) span: Duration,
    pub(crate) since: Tick,
}

/// Which clock has run out when [`Service::idle`](crate::Service::idle) is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Silent {
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

impl Seal {
    pub(crate) fn new(how: Security, by: Option<Tick>, bare: usize) -> Seal {
        Seal { how: Some(how), filter: None, by, bare, broken: None }
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("by", &self.by).field("bare", &self.bare).finish_non_exhaustive()
    }
}

impl Extra {
    pub(crate) fn is_limited(&self) -> bool {
        self.group.is_some() || self.clocks.as_ref().is_some_and(|clocks| clocks.bucket.is_some())
    }

    pub(crate) fn clocks(&mut self) -> &mut Clocks {
        self.clocks.get_or_insert_default()
    }
}
