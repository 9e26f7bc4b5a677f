//! The server name that a client asked for, on its way from the certificate's choice to the session.

use std::cell::Cell;

thread_local! {
    static REQUESTED_NAME: Cell<Option<Box<str>>> = const { Cell::new(None) };
}

pub(super) fn set(name: Option<&str>) {
    REQUESTED_NAME.set(name.map(Into::into));
}

/// The name in the hello that was read last on this thread, once.
///
/// An unbuffered connection of rustls does not tell the name. It asks for the certificate in every handshake, also in
/// a resumed one, but does not tell on whose behalf. So the name is left here, and the session looks right after each
/// call that can have read a hello.
pub(super) fn take() -> Option<Box<str>> {
    REQUESTED_NAME.take()
}
