//! Listening on a name.

use std::net::ToSocketAddrs;

use crate::base::address::Address;
use crate::base::setup_error::ListenError;

/// Listens on the first address of a name on which that is possible. The look-up blocks.
pub(super) fn listen_first<T>(
    at: Address,
    mut listen: impl FnMut(&Address) -> Result<T, ListenError>,
) -> Result<T, ListenError> {
    let candidates = match &at {
        Address::Name { .. } => {
            let failed = |error| ListenError::Unresolved { name: at.clone(), source: Some(error) };
            at.to_socket_addrs().map_err(failed)?.map(Address::Inet).collect()
        }
        one => vec![one.clone()],
    };
    let mut last = ListenError::Unresolved { name: at, source: None };
    for address in candidates {
        match listen(&address) {
            Ok(listening) => return Ok(listening),
            Err(error) => last = error,
        }
    }
    Err(last)
}
