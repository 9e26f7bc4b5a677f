//! How the loop calls a service whose type it does not know.
//!
//! Read before: `service/mod.rs`.

use std::any::Any;
use std::time::Duration;

use super::{Service, ServiceSockets};
use crate::base::id::{ServiceId, WatchId};
use crate::base::leaving::Leaving;
use crate::base::reason::{ClosedInfo, Refused};
use crate::connection::optional::IdleKind;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::connection::table::Table;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;

/// A call of a service: one variant for each callback, so that the type of the service is erased in one place.
pub(crate) enum Event<'a, 'b> {
    Start(ServiceId),
    /// A shutdown has begun; so long until the connections that are left are closed.
    Stopping(Duration),
    Timer(TimerId),
    Refused(&'a Refused),
    Closed(&'a ClosedInfo),
    /// The slot of the connection; the session is stored under it.
    Open(u32),
    /// These use the session of a slot.
    Data(u32, &'a mut Input<'b>),
    Connected(u32),
    FilterStarted(u32),
    End(u32),
    Drained(u32),
    Idle(u32, IdleKind),
    /// The tag of the alarm.
    Alarm(u32, u64),
    Left(u32, Leaving),
    Ready(WatchId),
    Poked(u32),
}

/// A service with its type erased. There is one per service and none per connection, so a connection needs no box.
pub(crate) trait AnyService {
    fn as_any(&mut self) -> &mut dyn Any;
    fn call(&mut self, table: &mut Table, event: Event<'_, '_>);
    /// Whether there is a session for this slot. Without one no callback of it is called.
    fn has_session(&self, slot: u32) -> bool;
}

/// A service and the sessions of its connections, by slot. A session without content costs one byte.
///
/// Each service has an entry for every slot, used or not. With several services that wastes entries, and saves a map: a
/// session is found by one index.
pub(crate) struct ServiceState<S: Service> {
    service: S,
    sessions: Vec<Option<S::Session>>,
}

impl<S: Service> ServiceState<S> {
    pub(crate) fn new(service: S) -> ServiceState<S> {
        ServiceState { service, sessions: Vec::new() }
    }

    /// The service, and what reaches its sessions.
    pub(super) fn with_sockets<'a>(&'a mut self, table: &'a mut Table) -> (&'a mut S, ServiceSockets<'a, S>) {
        let sockets = Sockets::new(table);
        (&mut self.service, ServiceSockets { sockets, sessions: &mut self.sessions })
    }

    fn open(&mut self, table: &mut Table, slot: u32) {
        let session = self.service.open(&mut Socket::new(table, slot));
        if self.sessions.len() <= slot as usize {
            self.sessions.resize_with(slot as usize + 1, || None);
        }
        self.sessions[slot as usize] = Some(session);
    }

    fn closed(&mut self, table: &mut Table, gone: &ClosedInfo) {
        if let Some(session) = self.sessions.get_mut(gone.id.slot as usize).and_then(Option::take) {
            self.service.closed(session, gone, &mut Sockets::new(table));
        }
    }

    /// Calls a callback that needs the session. There is none before `open` returns, and none after `closed`.
    fn with_session(
        &mut self,
        table: &mut Table,
        slot: u32,
        call: impl FnOnce(&mut S, &mut S::Session, &mut Socket<'_>),
    ) {
        if let Some(session) = self.sessions.get_mut(slot as usize).and_then(Option::as_mut) {
            call(&mut self.service, session, &mut Socket::new(table, slot));
        }
    }
}

impl<S: Service> AnyService for ServiceState<S> {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn has_session(&self, slot: u32) -> bool {
        self.sessions.get(slot as usize).is_some_and(Option::is_some)
    }

    fn call(&mut self, table: &mut Table, event: Event<'_, '_>) {
        match event {
            Event::Data(slot, input) => {
                self.with_session(table, slot, |service, session, socket| {
                    service.data(session, socket, input)
                });
            }
            Event::Start(own) => self.service.start(own, &mut Sockets::new(table)),
            Event::Stopping(grace) => {
                let (service, mut sockets) = self.with_sockets(table);
                service.stopping(grace, &mut sockets);
            }
            Event::Timer(timer) => self.service.timer(timer, &mut Sockets::new(table)),
            Event::Refused(refused) => self.service.refused(refused, &mut Sockets::new(table)),
            Event::Closed(gone) => self.closed(table, gone),
            Event::Open(slot) => self.open(table, slot),
            Event::Connected(slot) => self.with_session(table, slot, S::connected),
            Event::FilterStarted(slot) => self.with_session(table, slot, S::filter_started),
            Event::End(slot) => self.with_session(table, slot, S::end),
            Event::Drained(slot) => self.with_session(table, slot, S::drained),
            Event::Alarm(slot, tag) => {
                self.with_session(table, slot, |service, session, socket| {
                    service.alarm(session, socket, tag)
                });
            }
            Event::Left(slot, how) => {
                self.with_session(table, slot, |service, session, socket| service.left(session, socket, how));
            }
            Event::Ready(watch) => {
                let (service, mut sockets) = self.with_sockets(table);
                service.ready(watch, &mut sockets);
            }
            Event::Poked(slot) => self.with_session(table, slot, S::poked),
            Event::Idle(slot, which) => {
                self.with_session(table, slot, |service, session, socket| {
                    service.idle(session, socket, which)
                });
            }
        }
    }
}
