//! What services are told of a shutdown.

use super::*;
use crate::service::ServiceSockets;

/// Echoes lines; the session is whether the last one was `wait`, whose answer is still to come.
#[derive(Clone, Default)]
struct Lines {
    told: Rc<RefCell<Vec<Duration>>>,
    asked: Rc<RefCell<Vec<bool>>>,
}

impl Service for Lines {
    type Session = bool;

    fn open(&mut self, _: &mut Socket<'_>) -> bool {
        false
    }

    fn data(&mut self, busy: &mut bool, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        self.asked.borrow_mut().push(socket.all().is_shutting_down());
        *busy = input.take_all() == b"wait";
        if !*busy {
            socket.send(b"done");
        }
    }

    fn stopping(&mut self, grace: Duration, sockets: &mut ServiceSockets<'_, Lines>) {
        assert!(sockets.is_shutting_down());
        self.told.borrow_mut().push(grace);
        sockets.for_each(|busy, mut socket| {
            if !*busy {
                socket.send(b"bye");
                socket.close();
            }
        });
    }
}

fn two_services() -> (EventLoop<Sim>, Script, [Lines; 2]) {
    let (sim, script) = Sim::new();
    let mut event_loop = EventLoop::new(sim, Limits::default()).expect("a loop");
    let services = [Lines::default(), Lines::default()];
    let [first, _] = services.clone().map(|service| event_loop.add(service, None));
    event_loop.listen(&address().into(), first, &ListenOptions::default()).expect("a listener");
    (event_loop, script, services)
}

#[test]
fn each_service_is_told_once_and_can_close_the_connections_that_are_idle() {
    let (mut event_loop, script, [first, second]) = two_services();
    let [idle, busy] = [script.connect(), script.connect()];
    script.feed(busy, b"wait");
    event_loop.turn_until_quiet(&script);
    Sockets::new(&mut event_loop.table).shutdown(20 * SECOND);
    event_loop.turn_until_quiet(&script);
    assert_eq!((script.received(idle), script.received_end(idle)), (b"bye".to_vec(), true));
    assert!(!script.received_end(busy), "it is being answered");
    script.feed(busy, b"go on");
    event_loop.turn_until_quiet(&script);
    assert_eq!(script.received(busy), b"done");
    Sockets::new(&mut event_loop.table).stop();
    event_loop.turn_until_quiet(&script);
    assert_eq!(*first.told.borrow(), [20 * SECOND], "a second request is no second shutdown");
    assert_eq!(*second.told.borrow(), [20 * SECOND], "a service without connections is told, too");
    assert_eq!(*first.asked.borrow(), [false, true], "a callback can ask whether it runs");
    assert!(event_loop.is_finished());
}

#[test]
fn a_stop_tells_services_that_there_is_no_time() {
    let (mut event_loop, script, [first, _]) = two_services();
    let peer = script.connect();
    event_loop.turn_until_quiet(&script);
    Sockets::new(&mut event_loop.table).stop();
    event_loop.turn_until_quiet(&script);
    assert_eq!(*first.told.borrow(), [Duration::ZERO]);
    assert_eq!(script.received(peer), b"", "nothing is written any more");
    assert!(event_loop.is_finished());
}
