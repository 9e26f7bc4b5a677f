//! What the loop tells of the services under test: callbacks for the trace, and how connections have ended.

use std::cell::RefCell;
use std::rc::Rc;

use crate::base::observer::{Observer, Step};
use crate::base::reason::{ClosedInfo, Refused};
use crate::sys::sim::Script;

/// How connections of services have ended, and which peers were refused, each in order.
#[derive(Default)]
pub(super) struct Record {
    pub(super) closed: Vec<ClosedInfo>,
    pub(super) refused: Vec<Refused>,
}

/// An observer of the loop that fills the record, and adds each callback to the trace.
pub(super) fn recorder(record: Rc<RefCell<Record>>, script: Script) -> impl Observer {
    move |step: &Step<'_>| match step {
        Step::Call(call) => {
            let slot = call.connection.map(|id| id.slot as usize);
            script.note(call.callback.word(), slot, 0);
        }
        Step::Close { service: Some(_), gone } => record.borrow_mut().closed.push((*gone).clone()),
        Step::Refuse { refused, .. } => record.borrow_mut().refused.push((*refused).clone()),
        _ => {}
    }
}
