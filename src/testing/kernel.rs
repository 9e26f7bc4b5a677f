//! What a bench's kernel and network answer: names, dials, descriptors.

use std::net::IpAddr;

use super::{Bench, Peer};
use crate::base::address::Address;
use crate::sys::sim::{DialResult, ECONNREFUSED, PeerId};

/// How a dial is answered: see [`Bench::set_dial`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DialAnswer {
    /// It is connected. [`Bench::upstream`] gives the peer, which the test plays.
    Accept,
    /// It is refused, as by a host on which no process listens. The default for addresses where no service of the bench
    /// listens.
    Refuse,
    /// There is no answer, so the timeout of the dial passes.
    Hang,
    /// It fails with this error number of the system (errno).
    Fail(i32),
}

/// How a host name is looked up: see [`Bench::set_name`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NameAnswer {
    /// It has these addresses, in the order of preference.
    Addresses(Vec<IpAddr>),
    /// It does not exist. The default for all names.
    Unknown,
    /// There is no answer, so the timeout of the dial passes.
    Hang,
}

impl DialAnswer {
    fn result(self) -> DialResult {
        match self {
            DialAnswer::Accept => Some(Ok(())),
            DialAnswer::Refuse => Some(Err(ECONNREFUSED)),
            DialAnswer::Hang => None,
            DialAnswer::Fail(number) => Some(Err(number)),
        }
    }
}

/// Names, dials and descriptors.
///
/// A dial reaches the service of the bench that listens at its address; no more is needed for two services that talk to
/// each other. At other addresses the answers that are set here hold, and [`DialAnswer::Refuse`] where there is none.
///
/// ```
/// use tidemill::services::Proxy;
/// use tidemill::testing::{Bench, DialAnswer};
///
/// let mut bench = Bench::new();
/// bench.resolve("db", &["10.0.0.7"]);
/// bench.set_dial("10.0.0.7:5432", DialAnswer::Accept);
/// bench.serve(Proxy::to(vec!["db:5432".parse().unwrap()]));
///
/// let client = bench.connect();
/// let db = bench.upstream("10.0.0.7:5432");
/// bench.say(client, "select 1");
/// assert_eq!(bench.heard(db), "select 1");
/// ```
impl Bench {
    /// Sets how dials to an address are answered from now on, and answers those that wait.
    ///
    /// # Panics
    ///
    /// When `to` is not an address. A host name is no address here: see [`set_name`](Bench::set_name).
    #[track_caller]
    pub fn set_dial(&mut self, to: &str, answer: DialAnswer) {
        self.script.set_dial(parse(to), answer.result());
        self.run();
    }

    /// Sets how a host name is looked up from now on, and answers look-ups that wait.
    pub fn set_name(&mut self, host: &str, answer: NameAnswer) {
        let result = match answer {
            NameAnswer::Addresses(all) => Some(Ok(all)),
            NameAnswer::Unknown => Some(Err("Name or service not known")),
            NameAnswer::Hang => None,
        };
        self.script.set_name(host, result);
        self.run();
    }

    /// Gives a host name these addresses.
    ///
    /// # Panics
    ///
    /// When one of them is not an IP address.
    #[track_caller]
    pub fn resolve(&mut self, host: &str, addresses: &[&str]) {
        let parse = |text: &&str| text.parse().unwrap_or_else(|_| panic!("{text:?} is not an IP address"));
        self.set_name(host, NameAnswer::Addresses(addresses.iter().map(parse).collect()));
    }

    /// The upstream of the oldest dial to an address that was not asked for yet, and has not failed. The test plays it
    /// as any peer: what it [says](Bench::say) arrives at the service that has dialed. The dial may still wait for its
    /// answer.
    ///
    /// # Panics
    ///
    /// When there is no such dial.
    #[track_caller]
    pub fn upstream(&mut self, to: &str) -> Peer {
        self.next_upstream(to)
            .unwrap_or_else(|| panic!("no further dial to {to}; the dials so far: {:?}", self.dialed()))
    }

    /// As [`upstream`](Bench::upstream); `None` when there is no such dial.
    #[track_caller]
    pub(super) fn next_upstream(&mut self, to: &str) -> Option<Peer> {
        let address = parse(to).to_string();
        let dialed = self.script.dialed();
        let is_open = |peer| !self.dials_taken.contains(&peer) && !self.script.is_failed_dial(peer);
        let is_next = |peer: &PeerId| self.script.dialed_as(*peer) == address && is_open(*peer);
        let peer = dialed.into_iter().find(is_next)?;
        self.dials_taken.push(peer);
        Some(Peer(peer))
    }

    /// The addresses that were dialed so far, in order, but for those at which a service of the bench listens.
    pub fn dialed(&self) -> Vec<String> {
        self.script.dialed().into_iter().map(|peer| self.script.dialed_as(peer)).collect()
    }

    /// How many descriptors more the process may open: `Some(0)` refuses every further accept and dial for want of one,
    /// until a connection has ended; `None` lifts the limit. The reactor keeps one in reserve, and closes it first.
    pub fn set_descriptors_left(&mut self, left: Option<usize>) {
        let open = self.script.open_descriptors();
        self.script.descriptors(left.map_or(usize::MAX, |left| open + left));
        self.run();
    }
}

#[track_caller]
pub(super) fn parse(text: &str) -> Address {
    match text.parse() {
        Ok(Address::Name { .. }) => panic!("{text:?} is a host name: give its address"),
        Ok(address) => address,
        Err(error) => panic!("{error}"),
    }
}
