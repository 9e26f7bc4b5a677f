//! Who may come in, by its service's guard.

use std::net::{IpAddr, SocketAddr};

use log::Level;

use super::table::Table;
use crate::base::address::PeerAddress;
use crate::base::reason::Refusal;
use crate::config::access::AccessPolicy;
use crate::config::rules::RefuseMode;
use crate::connection::{Connection, Flag};
use crate::parts::admission::Admission;

/// Turned away: why, and how.
pub(crate) type Rejection = (Refusal, RefuseMode);

impl Table {
    /// Gives a service's listeners a guard, or another one; who is inside is remembered.
    pub(crate) fn set_access_policy(&mut self, service: u16, guard: AccessPolicy) {
        match self.admissions.get_mut(usize::from(service)) {
            Some(Some(admission)) => admission.policy = guard,
            Some(none) => *none = Some(Box::new(Admission::new(guard, self.limits.connections))),
            None => log::warn!("ignored an access policy for a service of another reactor"),
        }
    }

    /// Whether the rules let this address in. Checked before the capacity: whoever is not to come in at all is
    /// not told whether it is full.
    pub(crate) fn check_rules(&mut self, service: u16, ip: Option<IpAddr>) -> Result<(), Rejection> {
        let (Some(admission), Some(ip)) = (&mut self.admissions[usize::from(service)], ip) else {
            return Ok(());
        };
        let decided = admission.allows(ip).map_err(|how| (Refusal::Denied, how));
        let dry = admission.policy.dry_run;
        self.unless_dry_run(dry, ip, decided)
    }

    /// Whether its address may have one more connection, and now. If it may, says whether it has been counted.
    pub(crate) fn admit_address(&mut self, service: u16, ip: Option<IpAddr>) -> Result<bool, Rejection> {
        let now = self.now;
        let (Some(admission), Some(ip)) = (&mut self.admissions[usize::from(service)], ip) else {
            return Ok(false);
        };
        let (counts, dry) = (admission.tracks(ip), admission.policy.dry_run);
        let (too_many, too_fast) = (admission.policy.on_too_many, admission.policy.on_too_fast);
        let entered = admission.admit(ip, now).map_err(|why| match why {
            Refusal::AcceptRate => (why, too_fast),
            _ => (why, too_many),
        });
        self.unless_dry_run(dry, ip, entered).map(|()| counts)
    }

    fn unless_dry_run(
        &mut self,
        dry: bool,
        ip: IpAddr,
        decided: Result<(), Rejection>,
    ) -> Result<(), Rejection> {
        match decided {
            Err((why, _)) if dry => {
                self.stats.would_refuse[why as usize] += 1;
                let (level, left_out) = self.log_limits.dry_run.level(Level::Info, self.now);
                log::log!(level, "{ip} would have been refused: {why} (dry run){left_out}");
                Ok(())
            }
            decided => decided,
        }
    }

    /// A connection that goes no longer counts for its address.
    pub(crate) fn release_address(&mut self, gone: &Connection) {
        if !gone.flags.contains(Flag::Counted) {
            return;
        }
        if let (Some(admission), Some(ip)) = (&mut self.admissions[usize::from(gone.service)], gone.peer.ip())
        {
            admission.release(ip);
        }
    }

    /// Somebody who is trusted has said for whom a connection stands: from now on it is that one's.
    pub(crate) fn set_peer(&mut self, slot: u32, peer: SocketAddr) -> Result<(), Refusal> {
        let (service, was, ip) =
            (self.at(slot).service, self.at(slot).peer.ip(), Some(peer.ip().to_canonical()));
        let checked = self.check_rules(service, ip).and_then(|()| self.admit_address(service, ip));
        let counts = checked.map_err(|(why, _)| {
            self.stats.refused += 1;
            self.stats.refused_by_reason[why as usize] += 1;
            why
        })?;
        let counted = self.at(slot).flags.contains(Flag::Counted);
        if let (true, Some(admission), Some(was)) = (counted, &mut self.admissions[usize::from(service)], was)
        {
            admission.release(was);
        }
        let connection = self.at_mut(slot);
        connection.peer = PeerAddress::from(peer);
        connection.flags.set(Flag::Counted, counts);
        Ok(())
    }
}
