//! Access checks: which addresses may connect to a service.
//!
//! Read before: `parts/admission.rs`, which counts connections and accepts by address.

pub(crate) mod shared;

use std::net::{IpAddr, SocketAddr};

use log::Level;

use self::shared::{Admit, ServiceAdmission, SharedAdmission};
use super::table::Table;
use crate::base::address::PeerAddress;
use crate::base::id::ConnId;
use crate::base::reason::Refusal;
use crate::config::access::AccessPolicy;
use crate::config::rules::RefuseMode;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::Flag;
use crate::parts::admission::Admission;

/// Why a peer is refused, and how.
pub(crate) type Rejection = (Refusal, RefuseMode);

impl Connection {
    /// It no longer counts for its address.
    pub(crate) fn release_address(&self, cx: &mut Context) {
        if !self.flags.contains(Flag::Counted) {
            return;
        }
        if let (Some(admission), Some(ip)) = (&mut cx.admissions[usize::from(self.service)], self.peer.ip()) {
            admission.release(ip);
        }
    }
}

impl Table {
    /// Has the access policy of a service share its counts with other reactors. A policy that was set before is from
    /// now on that of all.
    pub(crate) fn share_admission(&mut self, service: u16, shared: SharedAdmission) {
        let shared = Box::new(ServiceAdmission::Shared(shared));
        let before = self.cx.admissions[usize::from(service)].replace(shared);
        if let Some(own) = before.and_then(Admit::into_own) {
            self.set_access_policy(service, own);
        }
    }

    /// Sets the access policy of a service. The counts of addresses are kept, so that a change of policy does not
    /// forget the connections that are open.
    pub(crate) fn set_access_policy(&mut self, service: u16, policy: AccessPolicy) {
        let connections = self.cx.limits.connections;
        let admission = &mut self.cx.admissions[usize::from(service)];
        match admission {
            Some(admission) => admission.set(policy),
            None => *admission = Some(Box::new(ServiceAdmission::Own(Admission::new(policy, connections)))),
        }
    }

    pub(crate) fn set_max_connections(&mut self, service: u16, max: Option<usize>) {
        match &mut self.cx.admissions[usize::from(service)] {
            Some(admission) => admission.set_connections(max),
            None => {
                self.set_access_policy(service, AccessPolicy { connections: max, ..AccessPolicy::default() })
            }
        }
    }

    /// Checks an address against the rules. It is done before the capacity is looked at, so that a denied peer does not
    /// learn whether the server is at capacity.
    pub(crate) fn check_rules(&mut self, service: u16, ip: Option<IpAddr>) -> Result<(), Rejection> {
        let (Some(admission), Some(ip)) = (&mut self.cx.admissions[usize::from(service)], ip) else {
            return Ok(());
        };
        let (decided, dry) = admission.check(ip);
        self.unless_dry_run(dry, ip, decided)
    }

    /// Counts one more connection for an address, if its limits allow that. Returns whether it was counted, so that it
    /// can be subtracted when the connection ends.
    pub(crate) fn admit_address(&mut self, service: u16, ip: Option<IpAddr>) -> Result<bool, Rejection> {
        let (Some(admission), Some(ip)) = (&mut self.cx.admissions[usize::from(service)], ip) else {
            return Ok(false);
        };
        let (counts, dry, entered) = admission.admit(ip, self.cx.now);
        self.unless_dry_run(dry, ip, entered).map(|()| counts)
    }

    /// In a dry run, counts and logs a rejection and admits the connection.
    fn unless_dry_run(
        &mut self,
        dry: bool,
        ip: IpAddr,
        decided: Result<(), Rejection>,
    ) -> Result<(), Rejection> {
        match decided {
            Err((why, _)) if dry => {
                self.cx.stats.would_refuse[why as usize] += 1;
                let (level, left_out) = self.cx.log_limits.dry_run.level(Level::Info, self.cx.now);
                log::log!(level, "{ip} would have been refused: {why} (dry run){left_out}");
                Ok(())
            }
            decided => decided,
        }
    }

    /// The reactor ends with the connections that it has: they no longer count for their addresses.
    pub(crate) fn release_all_addresses(&mut self) {
        for (_, connection) in &self.slots {
            connection.release_address(&mut self.cx);
        }
    }

    /// Replaces the peer's address (PROXY protocol), and moves the count to the new one.
    pub(crate) fn set_peer(&mut self, id: ConnId, peer: SocketAddr) -> Result<(), Refusal> {
        let Some(connection) = self.find(id) else { return Ok(()) };
        let service = connection.service;
        let ip = Some(peer.ip().to_canonical());
        let checked = self.check_rules(service, ip).and_then(|()| self.admit_address(service, ip));
        let counts = checked.map_err(|(why, _)| {
            self.cx.stats.refused += 1;
            self.cx.stats.refused_by_reason[why as usize] += 1;
            why
        })?;
        let (connection, cx) = self.at(id.slot);
        connection.release_address(cx);
        connection.peer = PeerAddress::from(peer);
        connection.flags.set(Flag::Counted, counts);
        Ok(())
    }
}
