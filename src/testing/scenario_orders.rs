//! The service of `serve orders`: what a program can do to its connections, said by the peers.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::scenario_parse::{parse, size, span};
use crate::base::address::Address;
use crate::base::id::{ConnId, GroupId, ServiceId};
use crate::base::reason::ClosedInfo;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
use crate::service::Service;

/// The connections of peers, by their names in the script, and the most memory that a callback has seen in use.
#[derive(Default)]
pub(super) struct Known {
    pub(super) ids: BTreeMap<String, ConnId>,
    pub(super) memory: usize,
}

/// Does what lines say, each within the callback that gets it. It echoes a line that is no order.
pub(super) struct Orders {
    known: Rc<RefCell<Known>>,
    own: Option<ServiceId>,
    group: Option<GroupId>,
    later: HashMap<TimerId, String>,
}

impl Orders {
    pub(super) fn new(known: Rc<RefCell<Known>>) -> Orders {
        Orders { known, own: None, group: None, later: HashMap::new() }
    }

    /// Does what an order says. `None` if it is none, and if a peer that it names is not there.
    fn obey(&mut self, order: &str, sockets: &mut Sockets<'_>) -> Option<()> {
        let words: Vec<&str> = order.split_whitespace().collect();
        match *words.as_slice() {
            ["group", "rate", bytes] => sockets.set_group_rate(self.group?, size(bytes).ok()?),
            ["group", bytes, ref members @ ..] => {
                self.group = sockets.add_group(size(bytes).ok()?).ok();
                for member in members {
                    self.on(member, sockets, |socket| socket.join_group(self.group))?;
                }
            }
            ["stop"] => sockets.stop(),
            ["dial", to] => {
                let to: Address = parse(to, "an address").ok()?;
                sockets.dial(to, self.own?).ok()?;
            }
            ["after", time, ..] => {
                let (_, order) = order.split_once(time)?;
                let timer = sockets.set_timer(self.own?, span(time).ok()?, None).ok()?;
                self.later.insert(timer, order.to_string());
            }
            ["send", to, bytes] => {
                let bytes = vec![b's'; size(bytes).ok()?];
                self.on(to, sockets, |socket| socket.send(bytes))?;
            }
            ["pipe", one, other] => {
                let other = self.id(other)?;
                self.on(one, sockets, |socket| _ = socket.pipe(other))?;
            }
            ["rate", of, bytes] => {
                let rate = size(bytes).ok()?;
                self.on(of, sockets, |socket| socket.set_rate(Some(rate)))?;
            }
            ["pause", who] => self.on(who, sockets, |socket| socket.pause())?,
            ["resume", who] => self.on(who, sockets, |socket| socket.resume())?,
            ["unpipe", who] => self.on(who, sockets, |socket| _ = socket.unpipe())?,
            ["finish", who] => self.on(who, sockets, |socket| socket.finish())?,
            ["close", who] => self.on(who, sockets, |socket| socket.close())?,
            ["abort", who] => self.on(who, sockets, |socket| socket.abort())?,
            _ => return None,
        }
        Some(())
    }

    fn id(&self, name: &str) -> Option<ConnId> {
        self.known.borrow().ids.get(name).copied()
    }

    fn on(&self, name: &str, sockets: &mut Sockets<'_>, act: impl FnOnce(&mut Socket<'_>)) -> Option<()> {
        sockets.get(self.id(name)?).map(|mut socket| act(&mut socket))
    }
}

impl Service for Orders {
    /// What to do when the connection has ended.
    type Session = String;

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) -> String {
        String::new()
    }

    fn data(&mut self, at_end: &mut String, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let memory = socket.all().memory();
        let most = self.known.borrow().memory.max(memory);
        self.known.borrow_mut().memory = most;
        while let Some(line) = input.take_line() {
            let text = String::from_utf8_lossy(line);
            match text.trim_end().strip_prefix("finally ") {
                Some(order) => *at_end = order.to_string(),
                None if self.obey(&text, &mut socket.all()).is_none() => socket.send(line),
                None => {}
            }
            if socket.piped_to().is_some() {
                return; // What is behind the line belongs to the pipe.
            }
        }
    }

    fn timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) {
        let order: Option<String> = self.later.remove(&timer);
        order.and_then(|order| self.obey(&order, sockets));
    }

    fn end(&mut self, _: &mut String, socket: &mut Socket<'_>) {
        socket.finish();
    }

    fn closed(&mut self, at_end: String, _: &ClosedInfo, sockets: &mut Sockets<'_>) {
        self.obey(&at_end, sockets);
    }
}
