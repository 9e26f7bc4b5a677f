//! Routes: the upstream of a client is chosen by the first bytes that it sends.

use std::fmt;
use std::time::Duration;

use super::{Proxy, Role};
use crate::base::address::Address;
use crate::base::reason::CloseReason;
use crate::base::tick::Tick;
use crate::connection::socket::Socket;
use crate::parts::inbox::Input;
use ::log::Level;

/// What the first bytes of a client say about its upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteChoice {
    /// More bytes are needed.
    Undecided,
    /// The upstream with this index in the list of [`Proxy::route`]. The bytes are sent to it as they are.
    To(usize),
    /// None of the routes: the client is treated as if there were none.
    Default,
}

/// Chooses by the bytes that have arrived so far.
pub(super) struct Classifier(Box<Choose>);
type Choose = dyn Fn(&[u8]) -> RouteChoice;

/// How long a client has to send what its route is chosen by. A client needs one round trip for that; a lost packet is
/// sent again after 1 s, then after 2 s (RFC 6298).
const ROUTE_WITHIN: Duration = Duration::from_secs(5);
/// Bytes by which a route must be decided. A ClientHello takes 200 to 2,000 bytes, up to 6,000 with a session ticket
/// or post-quantum keys.
const ROUTE_BYTES_MAX: usize = 16 * 1024;

impl Classifier {
    pub(super) fn new(choose: impl Fn(&[u8]) -> RouteChoice + 'static) -> Classifier {
        Classifier(Box::new(choose))
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Classifier")
    }
}

impl Proxy {
    /// A client's address is known: its route is chosen next, if there are routes.
    pub(super) fn begin(&mut self, client: &mut Socket<'_>, destination: Option<Address>) -> Role {
        if self.classifier.is_none() {
            return self.begin_default(client, destination);
        }
        client.set_alarm(Some(ROUTE_WITHIN));
        Role::AwaitingRoute(destination.map(Box::new))
    }

    /// Bytes have arrived of a client whose route is not chosen yet. They are left untaken, and go to the upstream when
    /// the two are piped.
    pub(super) fn choose_route(&mut self, role: &mut Role, client: &mut Socket<'_>, input: &Input<'_>) {
        let Some(Classifier(choose)) = &self.classifier else { return };
        let bytes = input.bytes().len().min(ROUTE_BYTES_MAX);
        let choice = choose(&input.bytes()[..bytes]);
        let Role::AwaitingRoute(destination) = role else { return };
        let destination = destination.take().map(|destination| *destination);
        *role = match choice {
            RouteChoice::Undecided if bytes < ROUTE_BYTES_MAX => {
                *role = Role::AwaitingRoute(destination.map(Box::new));
                return;
            }
            RouteChoice::Undecided => {
                let (level, left_out) =
                    self.log_limits.no_route.level(Level::Info, Tick::at(client.elapsed()));
                let peer = client.peer_addr();
                ::log::log!(level, "{peer}: closed: no route after {bytes} bytes{left_out}");
                client.close_as(CloseReason::Malformed);
                return;
            }
            RouteChoice::To(route) => {
                client.set_alarm(None);
                self.admit(client, destination, Some(route))
            }
            RouteChoice::Default => {
                client.set_alarm(None);
                self.begin_default(client, destination)
            }
        };
    }

    pub(super) fn on_no_route(&mut self, client: &mut Socket<'_>) {
        let (level, left_out) = self.log_limits.no_route.level(Level::Info, Tick::at(client.elapsed()));
        let peer = client.peer_addr();
        ::log::log!(level, "{peer}: closed: no route within {ROUTE_WITHIN:?}{left_out}");
        client.close_as(CloseReason::Unfinished);
    }
}
