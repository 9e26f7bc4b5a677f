//! `Leaving`: how a peer has left.

/// How a peer has left: a parameter of [`Service::left`](crate::Service::left).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Leaving {
    /// It has sent its FIN. It may have closed, or only have finished sending and wait for its answer (a half-close):
    /// TCP does not tell these apart.
    End,
    /// It has reset the connection, or the connection has failed: no answer can reach it.
    Reset,
}
