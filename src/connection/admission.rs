//! Who may come in, by its service's guard.

use std::net::{IpAddr, SocketAddr};

use super::table::Table;
use crate::base::address::Peer;
use crate::base::reason::Refusal;
use crate::config::access::Guard;
use crate::config::rules::Refuse;
use crate::connection::{Connection, Flag};
use crate::parts::admission::Watch;

/// Turned away: why, and how.
pub(crate) type TurnedAway = (Refusal, Refuse);

impl Table {
    /// Gives a service's listeners a guard, or another one; who is inside is remembered.
    pub(crate) fn set_guard(&mut self, host: u16, guard: Guard) {
        match self.watches.get_mut(usize::from(host)) {
            Some(Some(watch)) => watch.guard = guard,
            Some(none) => *none = Some(Box::new(Watch::new(guard, self.limits.connections))),
            None => log::warn!("a guard for a service of another reactor is no use here"),
        }
    }

    /// Whether the rules let this address in. Asked before the house is looked at: whoever is not to come in at all is
    /// not told whether it is full.
    pub(crate) fn check_rules(&mut self, host: u16, ip: Option<IpAddr>) -> Result<(), TurnedAway> {
        let (Some(watch), Some(ip)) = (&mut self.watches[usize::from(host)], ip) else { return Ok(()) };
        let decided = watch.allows(ip).map_err(|how| (Refusal::Denied, how));
        let dry = watch.guard.dry_run;
        self.unless_dry(dry, ip, decided)
    }

    /// Whether its address may have one more connection, and now. If it may, says whether it has been counted.
    pub(crate) fn check_address(&mut self, host: u16, ip: Option<IpAddr>) -> Result<bool, TurnedAway> {
        let now = self.now;
        let (Some(watch), Some(ip)) = (&mut self.watches[usize::from(host)], ip) else { return Ok(false) };
        let (counts, dry) = (watch.counts(ip), watch.guard.dry_run);
        let (crowded, hurried) = (watch.guard.crowded, watch.guard.hurried);
        let entered = watch.enter(ip, now).map_err(|why| match why {
            Refusal::AcceptRate => (why, hurried),
            _ => (why, crowded),
        });
        self.unless_dry(dry, ip, entered).map(|()| counts)
    }

    fn unless_dry(
        &mut self,
        dry: bool,
        ip: IpAddr,
        decided: Result<(), TurnedAway>,
    ) -> Result<(), TurnedAway> {
        match decided {
            Err((why, _)) if dry => {
                self.stats.would_refuse[why as usize] += 1;
                log::info!("{ip} would have been turned away: {why} (dry run)");
                Ok(())
            }
            decided => decided,
        }
    }

    /// A connection that goes no longer counts for its address.
    pub(crate) fn uncount(&mut self, gone: &Connection) {
        if !gone.flags.has(Flag::Counted) {
            return;
        }
        if let (Some(watch), Some(ip)) = (&mut self.watches[usize::from(gone.host)], gone.peer.ip()) {
            watch.leave(ip);
        }
    }

    /// Somebody who is trusted has said for whom a connection stands: from now on it is that one's.
    pub(crate) fn set_peer(&mut self, slot: u32, peer: SocketAddr) -> Result<(), Refusal> {
        let (host, was, ip) = (self.at(slot).host, self.at(slot).peer.ip(), Some(peer.ip().to_canonical()));
        let checked = self.check_rules(host, ip).and_then(|()| self.check_address(host, ip));
        let counts = checked.map_err(|(why, _)| {
            self.stats.refused += 1;
            self.stats.refused_for[why as usize] += 1;
            why
        })?;
        let counted = self.at(slot).flags.has(Flag::Counted);
        if let (true, Some(watch), Some(was)) = (counted, &mut self.watches[usize::from(host)], was) {
            watch.leave(was);
        }
        let connection = self.at_mut(slot);
        connection.peer = Peer::from(peer);
        connection.flags.set(Flag::Counted, counts);
        Ok(())
    }
}
