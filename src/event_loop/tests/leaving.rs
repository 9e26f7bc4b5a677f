//! Peers that leave while their connections are not read.

use super::*;
use crate::base::leaving::Leaving;
use crate::config::dial::DialOptions;

/// Pauses at its first byte, and wants to know when the peer leaves.
#[derive(Clone, Default)]
struct Busy {
    wants: bool,
    left: Rc<RefCell<Vec<Leaving>>>,
    ended: Rc<RefCell<Vec<CloseReason>>>,
    /// It pauses its connections when they begin.
    pauses: bool,
}

impl Service for Busy {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        socket.notice_leaving(self.wants);
        if self.pauses {
            socket.pause();
        }
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        if input.take(1) == b"p" {
            socket.pause();
        }
    }

    fn left(&mut self, _: &mut (), socket: &mut Socket<'_>, how: Leaving) {
        assert!(socket.is_paused());
        self.left.borrow_mut().push(how);
        socket.notice_leaving(true); // That is asked already: nothing is told twice.
    }

    fn closed(&mut self, _: (), gone: &ClosedInfo, _: &mut Sockets<'_>) {
        self.ended.borrow_mut().push(gone.reason);
    }
}

fn busy(wants: bool) -> (EventLoop<Sim>, Script, Busy) {
    let busy = Busy { wants, ..Busy::default() };
    let (event_loop, script, _) = with(&busy);
    (event_loop, script, busy)
}

fn with(busy: &Busy) -> (EventLoop<Sim>, Script, ServiceId) {
    let (sim, script) = Sim::new();
    let mut event_loop = EventLoop::new(sim, Limits::default()).unwrap();
    let service = event_loop.add(busy.clone(), Some(no_idle()));
    event_loop.listen(&address().into(), service, &ListenOptions::default()).unwrap();
    (event_loop, script, service)
}

#[test]
pub(super) fn a_peer_that_leaves_a_paused_connection_is_noticed_in_that_turn() {
    let (mut event_loop, script, busy) = busy(true);
    let peer = script.connect();
    script.feed(peer, b"p");
    event_loop.turn_until_quiet(&script);
    script.feed(peer, b"unread");
    event_loop.turn_until_quiet(&script);
    assert_eq!(*busy.left.borrow(), []);
    script.end(peer);
    event_loop.turn_until_quiet(&script);
    assert_eq!(*busy.left.borrow(), [Leaving::End], "although bytes before it are unread");
    script.reset(peer);
    event_loop.turn_until_quiet(&script);
    assert_eq!(*busy.left.borrow(), [Leaving::End, Leaving::Reset]);
    script.advance(2 * SECOND);
    event_loop.turn_until_quiet(&script);
    assert_eq!((busy.left.borrow().len(), busy.ended.borrow().len()), (2, 1));
}

#[test]
fn an_end_that_came_before_the_pause_is_noticed_too() {
    let (mut event_loop, script, busy) = busy(true);
    let peer = script.connect();
    script.feed(peer, b"pq");
    script.end(peer);
    event_loop.turn_until_quiet(&script);
    assert_eq!(*busy.left.borrow(), [Leaving::End], "its event came with the bytes and does not come again");
}

#[test]
fn a_connection_that_is_read_or_did_not_ask_hears_of_the_end_by_reading() {
    for (wants, sent) in [(true, b"x"), (false, b"p")] {
        let (mut event_loop, script, busy) = busy(wants);
        let peer = script.connect();
        script.feed(peer, sent);
        event_loop.turn_until_quiet(&script);
        script.end(peer);
        event_loop.turn_until_quiet(&script);
        assert_eq!(*busy.left.borrow(), [], "{wants}");
        assert_eq!(busy.ended.borrow().len(), usize::from(wants));
    }
}

#[test]
fn a_peer_that_leaves_before_the_dial_to_it_is_known_as_connected_is_noticed_then() {
    let busy = Busy { wants: true, pauses: true, ..Busy::default() };
    let (mut event_loop, script, service) = with(&busy);
    event_loop.table.dial(service, address().into(), DialOptions::default(), None).unwrap();
    event_loop.turn_until_quiet(&script);
    let peer = script.dialed()[0];
    // kqueue has two events for the FIN and the connect, which may come from two calls.
    script.end(peer);
    event_loop.turn_until_quiet(&script);
    assert_eq!(*busy.left.borrow(), [], "it is not connected yet");
    script.finish_dial(peer, Ok(()));
    event_loop.turn_until_quiet(&script);
    assert_eq!(*busy.left.borrow(), [Leaving::End]);
}
