//! Connections on their way from one thread to another.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::stream::Stream;
use crate::base::address::PeerAddress;
use crate::sys::locked;

/// Connections that one thread has accepted and a reactor on another accepts from here, as from a listener. The thread
/// that puts the first one in has to wake the reactor.
#[derive(Clone, Debug, Default)]
pub(crate) struct HandedOver(Arc<Mutex<VecDeque<(Stream, PeerAddress)>>>);

impl HandedOver {
    /// Adds a connection; returns whether there was none.
    pub(crate) fn push(&self, stream: Stream, peer: PeerAddress) -> bool {
        let mut all = locked(&self.0);
        all.push_back((stream, peer));
        all.len() == 1
    }

    pub(super) fn pop(&self) -> Option<(Stream, PeerAddress)> {
        locked(&self.0).pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        locked(&self.0).len()
    }
}
