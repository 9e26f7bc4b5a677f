//! What only few connections have, so that the others need not pay for it.

use std::time::Duration;

use crate::address::Address;
use crate::bucket::Bucket;
use crate::id::ConnId;
use crate::options::{DialOptions, SocketOption};
use crate::time::Tick;

/// State that a connection has beside the usual: it was dialed, is piped, is limited in its rate, or has clocks of its
/// own. The connection holds one by a pointer, which is null in all others.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Of a dialed one: who asked for it, what was asked for, and how.
    pub(crate) by: Option<ConnId>,
    pub(crate) to: Option<Address>,
    pub(crate) options: Option<Box<DialOptions>>,
    /// The lookup it waits for.
    pub(crate) lookup: Option<u64>,
    /// When the next address is to be tried.
    pub(crate) next_attempt: Option<Tick>,
    /// How often dialing has failed in a row before.
    pub(crate) failures: u32,
    /// Asked for before there was a stream to ask it of.
    pub(crate) asked: Vec<SocketOption>,

    /// Its own address, where the table of the machine's addresses does not have it.
    pub(crate) local: Option<Address>,

    /// Limits that differ from its service's.
    pub(crate) idle: Option<Option<Duration>>,
    pub(crate) reading: Option<Quiet>,
    pub(crate) writing: Option<Quiet>,
    pub(crate) silent: Silent,
    pub(crate) alarm: Option<Alarm>,

    /// Input thrown away while closing.
    pub(crate) discarded: usize,

    /// The other end of its pipe, and how many reads in a row were full.
    pub(crate) leg: Option<ConnId>,
    pub(crate) full_reads: u8,

    /// How fast it may be read.
    pub(crate) bucket: Option<Bucket>,
    pub(crate) group: Option<u16>,
    /// When there will be tokens again.
    pub(crate) refill: Option<Tick>,
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

impl Extra {
    pub(crate) fn is_limited(&self) -> bool {
        self.bucket.is_some() || self.group.is_some()
    }
}
