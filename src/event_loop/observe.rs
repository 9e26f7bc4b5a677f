//! What the loop tells observers: its phases, the kernel's events, and callbacks. Reads, writes and the others are told
//! where they happen. `base/observer.rs` has the steps.

use super::EventLoop;
use crate::base::id::TokenKind;
use crate::base::observer::{Call, Callback, Observer, Phase, Source, Step};
use crate::connection::table::Table;
use crate::service::{AnyService, Event};
use crate::sys::System;

/// Calls a callback of a service. Not a method, because a caller may have lent other parts of the loop.
#[inline(always)]
pub(super) fn call_service(
    services: &mut [Box<dyn AnyService>],
    number: u16,
    table: &mut Table,
    event: Event<'_, '_>,
) {
    let service = &mut *services[usize::from(number) - 1];
    if !table.cx.observers.want_messages() {
        service.call(table, event)
    } else {
        call_observed(service, number, table, event)
    }
}

#[cold]
#[inline(never)]
fn call_observed(service: &mut dyn AnyService, number: u16, table: &mut Table, event: Event<'_, '_>) {
    let Some(call) = call_of(service, number, table, &event) else { return service.call(table, event) };
    table.cx.observers.tell_message(|| Step::Call(call));
    service.call(table, event);
    table.cx.observers.tell_message(|| Step::Return(call));
}

/// The call that an event stands for. None without a session, because no callback is called then.
fn call_of(service: &dyn AnyService, number: u16, table: &Table, event: &Event<'_, '_>) -> Option<Call> {
    let owner = table.service_id(number);
    let (callback, slot) = match *event {
        Event::Start(_) => (Callback::Start, None),
        Event::Stopping(_) => (Callback::Stopping, None),
        Event::Timer(_) => (Callback::Timer, None),
        Event::Refused(_) => (Callback::Refused, None),
        Event::Closed(gone) => {
            let call = Call::new(Callback::Closed, owner, Some(gone.id));
            return service.has_session(gone.id.slot).then_some(call);
        }
        Event::Open(slot) => (Callback::Open, Some(slot)),
        Event::Data(slot, _) => (Callback::Data, Some(slot)),
        Event::Connected(slot) => (Callback::Connected, Some(slot)),
        Event::FilterStarted(slot) => (Callback::FilterStarted, Some(slot)),
        Event::End(slot) => (Callback::End, Some(slot)),
        Event::Drained(slot) => (Callback::Drained, Some(slot)),
        Event::Idle(slot, _) => (Callback::Idle, Some(slot)),
        Event::Alarm(slot, _) => (Callback::Alarm, Some(slot)),
        Event::Left(slot, _) => (Callback::Left, Some(slot)),
        Event::Ready(_) => (Callback::Ready, None),
        Event::Poked(slot) => (Callback::Poked, Some(slot)),
    };
    let runs = callback == Callback::Open || slot.is_none_or(|slot| service.has_session(slot));
    let connection = slot.map(|slot| table.slots[slot as usize].id);
    runs.then_some(Call::new(callback, owner, connection))
}

impl<S: System> EventLoop<S> {
    pub(crate) fn observe(&mut self, observer: impl Observer + 'static) {
        let cx = &mut self.table.cx;
        cx.observers.add(Box::new(observer), cx.stats.turns);
    }

    /// The sleep is over, and the turn begins.
    #[inline]
    pub(super) fn tell_woken(&mut self) {
        let cx = &mut self.table.cx;
        let (turn, now, events) = (cx.stats.turns + 1, cx.elapsed, self.events.len());
        if cx.observers.want_turn(turn) {
            cx.observers.tell_turn(turn, &Step::Woken { turn, now, events });
        }
    }

    #[inline]
    pub(super) fn tell_turn_end(&mut self) {
        let turn = self.table.cx.stats.turns;
        if self.table.cx.observers.want_turn(turn) {
            let carried_over = self.has_work();
            let (observers, stats) = (&mut self.table.cx.observers, &self.table.cx.stats);
            observers.tell_turn(turn, &Step::TurnEnd { turn, carried_over, stats });
        }
    }

    /// A phase begins, or goes on.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.table.cx.observers.tell_message(|| Step::Phase(phase));
    }

    /// Tells of the kernel's events, before they are handled. No callback comes in between, so an id means the same in
    /// both.
    pub(super) fn tell_events(&mut self) {
        if !self.table.cx.observers.want_messages() {
            return;
        }
        for ready in &self.events {
            let source = match ready.token.kind() {
                Some(TokenKind::Connection(id)) if self.table.find(id).is_some() => Source::Connection(id),
                Some(TokenKind::Listener(index)) => match self.table.listeners.all.get(index) {
                    Some(Some(listener)) => Source::Listener(listener.id),
                    _ => Source::Stale,
                },
                Some(TokenKind::Wake) => Source::Waker,
                _ => Source::Stale,
            };
            self.table.cx.observers.tell_message(|| Step::Event {
                source,
                readable: ready.readable,
                writable: ready.writable,
                end: ready.end,
                error: ready.error,
            });
        }
    }
}
