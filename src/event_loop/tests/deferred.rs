//! What callbacks put off: pokes, and work for a service.

use super::*;
use crate::base::id::Key;
use crate::service::ServiceSockets;

type Pokes = Rc<RefCell<Vec<(u64, ConnId)>>>;
type Poked = Box<dyn FnMut(&mut Socket<'_>)>;

/// Records its pokes, each with the number of the turn.
struct Nudged {
    pokes: Pokes,
    on_data: OnData,
    on_poked: Poked,
}

impl Service for Nudged {
    type Session = ConnId;

    fn open(&mut self, socket: &mut Socket<'_>) -> ConnId {
        socket.id()
    }

    fn data(&mut self, _: &mut ConnId, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        (self.on_data)(socket, input);
    }

    fn poked(&mut self, session: &mut ConnId, socket: &mut Socket<'_>) {
        assert_eq!(*session, socket.id(), "a poke came with another connection's session");
        let turn = socket.all().stats().turns;
        self.pokes.borrow_mut().push((turn, socket.id()));
        (self.on_poked)(socket);
    }
}

struct Nudges {
    event_loop: EventLoop<Sim>,
    service: ServiceId,
    script: Script,
    pokes: Pokes,
}

impl Nudges {
    fn new(
        on_data: impl FnMut(&mut Socket<'_>, &mut Input<'_>) + 'static,
        on_poked: impl FnMut(&mut Socket<'_>) + 'static,
    ) -> Nudges {
        let (sim, script) = Sim::new();
        let limits = Limits { accepts_per_turn: 5_000, ..Limits::default() };
        let mut event_loop = EventLoop::new(sim, limits).unwrap();
        let pokes = Pokes::default();
        let (on_data, on_poked) = (Box::new(on_data), Box::new(on_poked));
        let service = event_loop.add(Nudged { pokes: pokes.clone(), on_data, on_poked }, None);
        event_loop.listen(&Address::from(address()), service, &ListenOptions::default()).unwrap();
        Nudges { event_loop, service, script, pokes }
    }

    fn connect(&mut self) -> (PeerId, ConnId) {
        let peer = self.script.connect();
        self.event_loop.turn_until_quiet(&self.script);
        (peer, *self.sockets().ids().iter().max_by_key(|id| id.generation).expect("it was accepted"))
    }

    fn sockets(&mut self) -> Sockets<'_> {
        Sockets::new(&mut self.event_loop.table)
    }

    fn turns(&mut self) -> u64 {
        self.sockets().stats().turns
    }
}

/// A sum in the service and one in each session.
#[derive(Default)]
struct Sum {
    total: u64,
}

impl Service for Sum {
    type Session = u64;

    fn open(&mut self, _: &mut Socket<'_>) -> u64 {
        0
    }

    fn data(&mut self, own: &mut u64, _: &mut Socket<'_>, input: &mut Input<'_>) {
        let bytes = input.take_all().len() as u64;
        (*own, self.total) = (*own + bytes, self.total + bytes);
    }
}

fn sum_loop(limits: Limits) -> (EventLoop<Sim>, Script, Key<Sum>) {
    let (sim, script) = Sim::new();
    let mut event_loop = EventLoop::new(sim, limits).unwrap();
    let id = event_loop.add(Sum::default(), None);
    event_loop.listen(&Address::from(address()), id, &ListenOptions::default()).unwrap();
    let key = Sockets::new(&mut event_loop.table).key::<Sum>(id).expect("the type of the service");
    (event_loop, script, key)
}

#[test]
fn a_key_reaches_its_service_and_the_sessions_of_live_connections() {
    let (mut event_loop, script, key) = sum_loop(Limits::default());
    let peers = [script.connect(), script.connect()];
    script.feed(peers[0], b"four");
    script.feed(peers[1], b"seventy");
    event_loop.turn_until_quiet(&script);
    let sums = event_loop.with(key, |service, sockets| {
        let ids = sockets.ids();
        let own = ids.iter().filter_map(|&id| sockets.session(id).map(|(own, _)| *own)).collect::<Vec<_>>();
        sockets.session(ids[0]).expect("it is live").1.close();
        assert!(sockets.session(ids[0]).is_none(), "a closing connection is not reached");
        (service.total, own)
    });
    assert_eq!(sums, (11, vec![4, 7]));
    assert!(Sockets::new(&mut event_loop.table).key::<Nudged>(key.id()).is_none(), "another type");
}

#[test]
fn posts_for_a_service_reach_the_session_and_send_in_the_same_turn() {
    let (mut event_loop, script, key) = sum_loop(Limits::default());
    let peer = script.connect();
    script.feed(peer, b"four");
    event_loop.turn_until_quiet(&script);
    let id = Sockets::new(&mut event_loop.table).ids()[0];
    let handle = event_loop.handle();
    let work = move |service: &mut Sum, sockets: &mut ServiceSockets<'_, Sum>| {
        let (own, mut socket) = sockets.session(id).expect("it is live");
        socket.send(format!("{own} of {}", service.total).as_bytes());
    };
    std::thread::spawn(move || handle.post_to(key, work).unwrap()).join().unwrap();
    event_loop.turn_and_check();
    assert_eq!(script.received(peer), b"4 of 4");
}

#[test]
fn a_key_of_another_reactor_is_refused_with_the_work() {
    let ((mut first, _, key), (mut second, ..)) = (sum_loop(Limits::default()), sum_loop(Limits::default()));
    let refused = second.handle().post_to(key, |sum, _| sum.total = 7).unwrap_err();
    assert_eq!(refused.to_string(), "cannot post: the service is of another reactor");
    let refused = Sockets::new(&mut second.table).later(key, refused.into_inner()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    Sockets::new(&mut first.table).later(key, refused.into_inner()).unwrap();
    first.turn_and_check();
    assert_eq!(first.with(key, |sum, _| sum.total), 7);
}

#[test]
fn work_put_off_runs_in_order_within_its_bounds_and_makes_the_next_wait_zero() {
    let (mut event_loop, script, key) = sum_loop(Limits { posts: 6, posts_per_turn: 4, ..Limits::default() });
    let mut sockets = Sockets::new(&mut event_loop.table);
    for digit in 1..=6 {
        sockets.later(key, move |sum, _| sum.total = sum.total * 10 + digit).unwrap();
    }
    assert_eq!(sockets.later(key, |_, _| {}).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    event_loop.turn_and_check();
    assert_eq!(event_loop.with(key, |sum, _| sum.total), 1_234);
    event_loop.turn(None).unwrap();
    assert_eq!(script.last_wait(), Some(Some(Duration::ZERO)));
    assert_eq!(event_loop.with(key, |sum, _| sum.total), 123_456);
    let again = move |_: &mut Sum, sockets: &mut ServiceSockets<'_, Sum>| {
        sockets.later(key, |sum, _| sum.total = 0).unwrap();
    };
    Sockets::new(&mut event_loop.table).later(key, again).unwrap();
    event_loop.turn_and_check();
    assert_eq!(
        event_loop.with(key, |sum, _| sum.total),
        123_456,
        "what work puts off waits for the next turn"
    );
    event_loop.turn_and_check();
    assert_eq!(event_loop.with(key, |sum, _| sum.total), 0);
}

#[test]
fn a_poke_calls_poked_once_in_the_same_turn_and_its_answer_leaves_in_it() {
    let other = Rc::new(RefCell::new(None));
    let target = other.clone();
    let mut test = Nudges::new(
        move |socket, input| {
            input.take_all();
            let mut other = socket.other(target.borrow().expect("an id")).expect("it is there");
            other.poke();
            other.poke();
        },
        |socket| socket.send(b"nudged"),
    );
    let ((asks, _), (answers, id)) = (test.connect(), test.connect());
    *other.borrow_mut() = Some(id);
    test.script.feed(asks, b"x");
    let turn = test.turns();
    test.event_loop.turn_and_check();
    assert_eq!(*test.pokes.borrow(), [(turn, id)]);
    assert_eq!(test.script.received(answers), b"nudged");
    assert!(!test.event_loop.has_work());
}

#[test]
fn a_poke_from_a_poke_waits_for_the_next_turn_which_does_not_sleep() {
    let mut left = 3;
    let mut test = Nudges::new(discard, move |socket| {
        left -= 1;
        if left > 0 {
            socket.poke();
        }
    });
    let (_, id) = test.connect();
    test.sockets().get(id).expect("it is there").poke();
    let turn = test.turns();
    for _ in 0..3 {
        test.event_loop.turn(None).unwrap();
        assert_eq!(test.script.last_wait(), Some(Some(Duration::ZERO)));
    }
    assert_eq!(*test.pokes.borrow(), [(turn, id), (turn + 1, id), (turn + 2, id)]);
    test.event_loop.turn(Some(SECOND)).unwrap();
    assert_ne!(test.script.last_wait(), Some(Some(Duration::ZERO)), "no poke is left, so it sleeps");
}

#[test]
fn pokes_of_one_turn_are_bounded_and_none_is_lost() {
    let mut test = Nudges::new(discard, |_| {});
    (0..3_000).for_each(|_| {
        test.script.connect();
    });
    test.event_loop.turn_until_quiet(&test.script);
    let ids = test.sockets().ids();
    ids.iter().for_each(|&id| test.sockets().get(id).expect("it is there").poke());
    test.event_loop.turn_and_check();
    assert_eq!(test.pokes.borrow().len(), 1_024);
    test.event_loop.turn_until_quiet(&test.script);
    let poked: Vec<ConnId> = test.pokes.borrow().iter().map(|(_, id)| *id).collect();
    assert_eq!(poked, ids, "each once, in the order of the pokes");
}

#[test]
fn a_poke_of_a_connection_that_ends_reaches_neither_it_nor_the_next_in_its_slot() {
    let mut test = Nudges::new(discard, |_| {});
    let (_, first) = test.connect();
    let mut sockets = test.sockets();
    let mut socket = sockets.get(first).expect("it is there");
    socket.poke();
    socket.abort();
    let peer = test.script.connect();
    test.event_loop.turn_until_quiet(&test.script);
    let second = test.sockets().ids()[0];
    assert_eq!((second.slot, second == first), (first.slot, false));
    assert_eq!(*test.pokes.borrow(), []);
    // Nor does a poke that was dropped keep the next connection from being poked.
    test.sockets().get(second).expect("it is there").poke();
    test.event_loop.turn_until_quiet(&test.script);
    assert_eq!(test.pokes.borrow().iter().map(|(_, id)| *id).collect::<Vec<_>>(), [second]);
    test.script.reset(peer);
    test.event_loop.turn_until_quiet(&test.script);
}

#[test]
pub(super) fn a_poke_of_a_dial_waits_until_open_has_been_called() {
    let mut test = Nudges::new(discard, |_| {});
    let service = test.service;
    let id = test.sockets().dial("10.0.0.9:1", service).expect("a slot");
    test.sockets().get(id).expect("it is being dialed").poke();
    test.event_loop.turn_and_check();
    assert_eq!(*test.pokes.borrow(), [], "there is no session yet");
    test.event_loop.turn_and_check();
    assert_eq!(test.pokes.borrow().iter().map(|(_, id)| *id).collect::<Vec<_>>(), [id]);
}
