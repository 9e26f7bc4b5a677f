//! What the services under test are told, noted down between the loop and them.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::base::id::ConnId;
use crate::base::reason::{ClosedInfo, Refused};
use crate::connection::table::Table;
use crate::service::{AnyService, Event, Service, ServiceState};
use crate::sys::sim::Script;

/// What all services of a bench were told. Cheap to clone.
#[derive(Clone)]
pub(super) struct Record {
    told: Rc<RefCell<Notes>>,
    script: Script,
}

#[derive(Default)]
struct Notes {
    closed: BTreeMap<ConnId, ClosedInfo>,
    refused: Vec<Refused>,
}

/// A service and the record that it writes. It stands where the loop has its services.
struct Recorder<S: Service> {
    state: ServiceState<S>,
    record: Record,
}

impl Record {
    pub(super) fn new(script: Script) -> Record {
        Record { told: Rc::default(), script }
    }

    pub(super) fn watch(&self, service: impl Service) -> Box<dyn AnyService> {
        Box::new(Recorder { state: ServiceState::new(service), record: self.clone() })
    }

    pub(super) fn closed(&self, id: ConnId) -> Option<ClosedInfo> {
        self.told.borrow().closed.get(&id).cloned()
    }

    pub(super) fn all_closed(&self) -> Vec<ClosedInfo> {
        self.told.borrow().closed.values().cloned().collect()
    }

    pub(super) fn refused(&self) -> Vec<Refused> {
        self.told.borrow().refused.clone()
    }

    /// Adds a callback to the trace of the simulation, and its news to the record.
    fn add(&self, event: &Event<'_, '_>) {
        let (what, slot) = match event {
            Event::Start(_) => ("start", None),
            Event::Stopping(_) => ("stopping", None),
            Event::Timer(_) => ("timer", None),
            Event::Refused(_) => ("refused", None),
            Event::Closed(gone) => ("closed", Some(gone.id.slot)),
            Event::Open(slot) => ("open", Some(*slot)),
            Event::Data(slot, _) => ("data", Some(*slot)),
            Event::Connected(slot) => ("connected", Some(*slot)),
            Event::FilterStarted(slot) => ("filter_started", Some(*slot)),
            Event::End(slot) => ("end", Some(*slot)),
            Event::Drained(slot) => ("drained", Some(*slot)),
            Event::Idle(slot, _) => ("idle", Some(*slot)),
            Event::Alarm(slot, _) => ("alarm", Some(*slot)),
            Event::Left(slot, _) => ("left", Some(*slot)),
            Event::Ready(_) => ("ready", None),
            Event::Poked(slot) => ("poked", Some(*slot)),
        };
        let n = match event {
            Event::Data(_, input) => input.len() as i64,
            Event::Closed(gone) => gone.reason.index() as i64,
            _ => 0,
        };
        self.script.note(what, slot.map(|slot| slot as usize), n);
        match event {
            Event::Closed(gone) => drop(self.told.borrow_mut().closed.insert(gone.id, (*gone).clone())),
            Event::Refused(refused) => self.told.borrow_mut().refused.push((*refused).clone()),
            _ => {}
        }
    }
}

impl<S: Service> AnyService for Recorder<S> {
    fn as_any(&mut self) -> &mut dyn Any {
        self.state.as_any()
    }

    fn has_session(&self, slot: u32) -> bool {
        self.state.has_session(slot)
    }

    fn call(&mut self, table: &mut Table, event: Event<'_, '_>) {
        self.record.add(&event);
        self.state.call(table, event);
    }
}
