//! What a callback puts off until no callback runs.

use std::any::Any;
use std::collections::VecDeque;

use crate::base::id::ConnId;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::socket::Socket;
use crate::connection::table::Table;

/// Work for one service: it gets the service, erased, and the connections.
pub(crate) type Work = Box<dyn FnOnce(&mut dyn Any, &mut Table)>;

/// Connections whose service has asked for the `poked` callback, each once, in the order of asking.
#[derive(Default)]
pub(crate) struct Pokes {
    line: VecDeque<ConnId>,
    /// By slot: the generation that stands in the line, or 0. A connection has no room for another flag, and most
    /// programs poke none, so this is as long as the highest slot that was ever poked.
    marks: Vec<u32>,
}

impl Pokes {
    pub(crate) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.line.len()
    }

    pub(crate) fn push(&mut self, id: ConnId) {
        let slot = id.slot as usize;
        if self.marks.len() <= slot {
            self.marks.resize(slot + 1, 0);
        }
        if self.marks[slot] != id.generation.get() {
            self.marks[slot] = id.generation.get();
            self.line.push_back(id);
        }
    }

    /// Takes the next one. It can be poked again from here on.
    pub(crate) fn pop(&mut self) -> Option<ConnId> {
        let id = self.line.pop_front()?;
        let mark = &mut self.marks[id.slot as usize];
        // A newer connection of the slot may have put its own mark there.
        if *mark == id.generation.get() {
            *mark = 0;
        }
        Some(id)
    }
}

impl Socket<'_> {
    /// Has the connection's service called: [`Service::poked`](crate::Service::poked), with the session, once, however
    /// often it is poked before. It runs in phase 5 of this turn; when the poke comes from `poked` itself or from a
    /// callback after phase 5, in the next turn, which does not sleep.
    pub fn poke(&mut self) {
        let (connection, cx) = self.parts();
        connection.poke(cx);
    }
}

impl Connection {
    /// Puts it in line for the `poked` callback. A closing connection has no callback left but `closed`.
    pub(crate) fn poke(&self, cx: &mut Context) {
        if self.is_live() {
            cx.pokes.push(self.id);
        }
    }
}
