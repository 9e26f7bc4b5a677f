//! What the chat has of the backplane, and what it shares with the two connections.

use std::cell::RefCell;
use std::rc::Rc;

use tidemill::services::{Chat, Elsewhere};
use tidemill::{ConnId, Sockets};

use super::Role;
use super::incoming::is_said;
use super::outgoing::Outgoing;

/// The longest line that is published, with its name.
pub const LINE_MAX: usize = 64 * 1024;

/// What a sender is sent whose line stays in its own process.
const TOO_MANY: &str = "only members here got this: too many lines wait for the broker\n";
const TOO_LONG: &str = "only members here got this: it is longer than 64 KiB\n";

/// What the chat and the two connections share.
#[derive(Debug, Default)]
pub struct Common {
    pub outgoing: Outgoing,
    /// The connections, by role, while they are there.
    pub connections: [Option<ConnId>; 2],
    /// Whether lines of others are on their way to members of the room, or have filled the queue of one.
    pub is_room_busy: bool,
}

impl Common {
    /// Has a connection called, if it is there: `Service::poked`.
    fn wake(&self, role: Role, sockets: &mut Sockets<'_>) {
        if let Some(mut socket) = self.connections[role as usize].and_then(|id| sockets.get(id)) {
            socket.poke();
        }
    }

    /// The room takes more lines of others.
    pub fn read_on(&mut self, sockets: &mut Sockets<'_>) {
        self.is_room_busy = false;
        self.wake(Role::Reader, sockets);
    }
}

/// Where the lines of a chat go.
#[derive(Clone, Debug, Default)]
pub struct Publisher(pub Rc<RefCell<Common>>);

impl Elsewhere for Publisher {
    /// Takes what a member has said. That one joins or leaves is told in its own process only: a process that is cut
    /// off could not tell the others that its members have gone. A sender never waits for the broker.
    fn tell(&mut self, line: &str, sender: Option<ConnId>, sockets: &mut Sockets<'_>) -> bool {
        let Some((sender, line)) = sender.filter(|_| is_said(line)).zip(line.strip_suffix('\n')) else {
            return true;
        };
        let mut common = self.0.borrow_mut();
        let refusal = match line.len() > LINE_MAX {
            true => Some(TOO_LONG),
            false if !common.outgoing.push(line.as_bytes()) => Some(TOO_MANY),
            false => None,
        };
        match refusal {
            None => common.wake(Role::Writer, sockets),
            Some(refusal) => {
                if let Some(mut sender) = sockets.get(sender) {
                    sender.send(refusal);
                }
            }
        }
        true
    }

    /// Members that did not read have drained, or are waited for no longer.
    fn drained(&mut self, _: &mut Chat, sockets: &mut Sockets<'_>) {
        self.0.borrow_mut().read_on(sockets);
    }
}
