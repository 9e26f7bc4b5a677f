//! Passes the server name that a client requested (SNI) from the choice of a certificate to the session.

use std::cell::Cell;

thread_local! {
    static REQUESTED_NAME: Cell<Option<Box<str>>> = const { Cell::new(None) };
}

pub(super) fn set(name: Option<&str>) {
    REQUESTED_NAME.set(name.map(Into::into));
}

/// Returns the name in the ClientHello that was processed last on this thread, once.
///
/// Unbuffered connections of rustls do not expose the name. The certificate resolver gets it, also when a session is
/// resumed, but does not know the connection. So the resolver stores the name here, and the session takes it after
/// each call that can have processed a ClientHello.
pub(super) fn take() -> Option<Box<str>> {
    REQUESTED_NAME.take()
}
