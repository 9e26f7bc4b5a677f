//! What observers are told, and in which order.

use std::collections::HashSet;

use super::*;
use crate::base::id::Key;
use crate::base::observer::{Call, Due, Observer, Phase, Source, Step};
use crate::base::stats::Stats;
use crate::config::dial::DialOptions;
use crate::config::rules::{IpRange, RefuseMode, Rules};
use crate::connection::table::Stop;

type Steps = Rc<RefCell<Vec<String>>>;

/// A step as a line of text, without what differs from run to run.
fn line(step: &Step<'_>) -> String {
    let told = |result: &Result<usize, &std::io::Error>| match result {
        Ok(n) => n.to_string(),
        Err(error) => format!("{:?}", error.kind()),
    };
    let call = |call: &Call| {
        let on = call.connection.map_or(String::new(), |id| format!(" {id}"));
        format!("{}{on}", call.callback.word())
    };
    match step {
        Step::Phase(phase) => phase.word().to_string(),
        Step::Woken { turn, now, events } => format!("woken turn {turn} at {now:?}, {events} events"),
        Step::Event { source: Source::Connection(id), readable, writable, end, error } => {
            format!("event {id} readable={readable} writable={writable} end={end} error={error}")
        }
        Step::Event { source: Source::Listener(_), .. } => "event listener".to_string(),
        Step::Event { source, .. } => format!("event {source:?}"),
        Step::Call(it) => format!("call {}", call(it)),
        Step::Return(it) => format!("return {}", call(it)),
        Step::Read { connection, result } => format!("read {connection} {}", told(result)),
        Step::Send { connection, bytes } => format!("send {connection} {bytes}"),
        Step::Write { connection, result } => format!("write {connection} {}", told(result)),
        Step::Fin { connection, result } => format!("fin {connection} {}", result.is_ok()),
        Step::Deadline { connection, due } => format!("deadline {connection} {due:?}"),
        Step::Accept { connection, peer, .. } => format!("accept {connection} from {peer}"),
        Step::Refuse { refused, .. } => format!("refuse {}", refused.reason.word()),
        Step::Dial { connection, to, .. } => format!("dial {connection} to {to}"),
        Step::Attempt { connection, to } => format!("attempt {connection} to {to}"),
        Step::AttemptFailed { connection, to, error } => {
            format!("failed {connection} to {to}: {:?}", error.kind())
        }
        Step::Connected { connection, to } => format!("connected {connection} to {to}"),
        Step::Close { service, gone } => {
            format!("close {} {} service={}", gone.id, gone.reason.word(), service.is_some())
        }
        Step::TurnEnd { turn, carried_over, .. } => {
            format!("end of turn {turn}, carried over: {carried_over}")
        }
    }
}

/// Records the steps of a loop from now on.
fn record(event_loop: &mut EventLoop<Sim>) -> Steps {
    let steps = Steps::default();
    let own = Rc::clone(&steps);
    event_loop.observe(move |step: &Step<'_>| own.borrow_mut().push(line(step)));
    steps
}

/// The steps that are neither a phase nor the beginning or the end of a turn, and forgets all.
fn take_work(steps: &Steps) -> Vec<String> {
    let frame = |line: &String| {
        let is_phase = Phase::ALL.iter().any(|phase| phase.word() == line);
        is_phase || line.starts_with("woken") || line.starts_with("end of turn")
    };
    steps.borrow_mut().drain(..).filter(|line| !frame(line)).collect()
}

#[test]
fn one_echo_is_told_step_by_step() {
    let mut test = Setup::default().build(echo);
    let (peer, id) = test.accept();
    test.script.advance(7 * MS);
    let before = test.event_loop.table.cx.stats.turns;
    let steps = record(&mut test.event_loop);
    test.script.feed(peer, &[b'x'; 64]);
    test.turn();
    let turn = before + 1;
    assert_eq!(
        *steps.borrow(),
        [
            "poll".to_string(),
            format!("woken turn {turn} at 7ms, 1 events"),
            "dispatch".to_string(),
            format!("event {id} readable=true writable=false end=false error=false"),
            "run_posts".to_string(),
            "read".to_string(),
            format!("read {id} 64"),
            format!("call data {id}"),
            format!("send {id} 64"),
            format!("return data {id}"),
            "expire".to_string(),
            "write".to_string(),
            format!("write {id} 64"),
            "reap".to_string(),
            "accept".to_string(),
            format!("end of turn {turn}, carried over: false"),
        ]
    );
}

#[test]
fn a_connection_is_told_from_accept_to_close() {
    let mut test = Setup::default().build(echo);
    let steps = record(&mut test.event_loop);
    let (peer, id) = test.accept();
    let from = test.sockets().get(id).unwrap().peer_addr();
    let opened = [
        "event listener".to_string(),
        format!("accept {id} from {from}"),
        format!("call open {id}"),
        format!("return open {id}"),
    ];
    assert_eq!(take_work(&steps)[..4], opened);
    test.script.end(peer);
    test.turn_until_quiet();
    let ended = [
        format!("event {id} readable=true writable=false end=true error=false"),
        format!("read {id} 0"),
        format!("call end {id}"),
        format!("return end {id}"),
        format!("fin {id} true"),
        format!("close {id} finished service=true"),
        format!("call closed {id}"),
        format!("return closed {id}"),
    ];
    assert_eq!(take_work(&steps), ended);
}

#[test]
fn a_dial_is_told_with_each_attempt() {
    let mut test = Setup::default().build(discard);
    let steps = record(&mut test.event_loop);
    let (service, to) = (test.event_loop.table.service_id(1), "a.example:80".parse().unwrap());
    let id = test.event_loop.table.dial(service, to, DialOptions::default(), None).unwrap();
    test.turn_until_quiet();
    test.script.resolve(test.script.lookups()[0].0, &["10.0.0.8:80", "10.0.0.9:80"]);
    test.turn_until_quiet();
    test.script.finish_dial(test.script.dialed()[0], Err(libc::ECONNREFUSED));
    test.turn_until_quiet();
    test.script.finish_dial(test.script.dialed()[1], Ok(()));
    test.turn_until_quiet();
    let told = take_work(&steps);
    let told: Vec<&String> = told.iter().filter(|line| !line.starts_with("event")).collect();
    assert_eq!(
        told,
        [
            &format!("dial {id} to a.example:80"),
            &format!("call open {id}"),
            &format!("return open {id}"),
            &format!("attempt {id} to 10.0.0.8:80"),
            &format!("failed {id} to 10.0.0.8:80: ConnectionRefused"),
            &format!("attempt {id} to 10.0.0.9:80"),
            &format!("connected {id} to 10.0.0.9:80"),
            &format!("call connected {id}"),
            &format!("return connected {id}"),
        ]
    );
}

#[test]
fn deadlines_and_refusals_are_told_and_a_refused_peer_has_no_service() {
    let limits = SocketLimits { idle: Some(SECOND), ..SocketLimits::default() };
    let mut test = socket_limits(limits).build(echo);
    let (peer, id) = test.accept();
    test.advance(SECOND / 2);
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    let steps = record(&mut test.event_loop);
    test.advance(SECOND + 30 * MS);
    let told = take_work(&steps);
    let idle = format!("deadline {id} {:?}", Some(Due::Idle));
    let due: Vec<&String> = told.iter().filter(|line| line.starts_with("deadline")).collect();
    assert_eq!(due[..2], [&format!("deadline {id} None"), &idle], "activity came first, then none");
    assert!(told.contains(&format!("call idle {id}")), "{told:?}");

    let range: IpRange = "0.0.0.0/0".parse().unwrap();
    let mut rules = Rules::default();
    rules.deny(range, RefuseMode::Reply);
    let policy = crate::config::access::AccessPolicy { rules, ..Default::default() };
    let service = test.event_loop.table.service_id(1);
    test.sockets().set_access_policy(service, policy);
    test.script.connect();
    test.turn_until_quiet();
    let told = take_work(&steps);
    let at = told.iter().position(|line| line == "refuse denied").expect("the refusal");
    assert_eq!(told[at + 1..at + 3], ["call refused", "return refused"]);
    assert!(told.iter().any(|line| line.starts_with("send ")), "the reply");
    assert!(!told.iter().any(|line| line.starts_with("accept")), "{told:?}");
}

#[test]
fn posts_and_put_off_work_are_told_as_calls() {
    let mut test = Setup::default().build(echo);
    let steps = record(&mut test.event_loop);
    test.event_loop.handle().post(|_| {}).unwrap();
    let key: Key<Probe> = Key::new(test.event_loop.table.service_id(1));
    assert!(test.sockets().later(key, |_, _| {}).is_ok());
    test.turn_until_quiet();
    assert_eq!(take_work(&steps), ["call post", "return post", "call later", "return later"]);
}

#[test]
fn a_dial_that_is_cancelled_before_open_is_told_without_callbacks() {
    let mut test = Setup::default().build(echo);
    let steps = record(&mut test.event_loop);
    let to = Address::from(address());
    let id = test
        .event_loop
        .table
        .dial(test.event_loop.table.service_id(1), to.clone(), DialOptions::default(), None)
        .unwrap();
    assert!(test.sockets().cancel_dial(id));
    test.turn_until_quiet();
    assert_eq!(take_work(&steps), [format!("dial {id} to {to}"), format!("close {id} local service=true")]);
}

#[test]
fn an_event_of_a_closed_connection_is_told_as_stale() {
    let mut test = Setup::default().build(echo);
    let (peer, id) = test.accept();
    let token = test.script.token(peer).unwrap();
    test.sockets().get(id).unwrap().abort();
    test.turn_until_quiet();
    let steps = record(&mut test.event_loop);
    test.script.event(token);
    test.turn_until_quiet();
    assert_eq!(take_work(&steps), ["event Stale"]);
}

#[test]
fn each_observer_is_told_in_the_order_in_which_they_were_added() {
    let mut test = Setup::default().build(echo);
    let order = Rc::new(RefCell::new(Vec::new()));
    for name in ["first", "second"] {
        let order = Rc::clone(&order);
        let told = move |step: &Step<'_>| {
            if matches!(step, Step::TurnEnd { .. }) {
                order.borrow_mut().push(name);
            }
        };
        test.event_loop.observe(told);
    }
    test.turn();
    assert_eq!(*order.borrow(), ["first", "second"]);
}

/// Checks what the module promises of the order of steps.
#[derive(Default)]
pub(super) struct Order {
    phase: Option<Phase>,
    call: Option<Call>,
    there: HashSet<ConnId>,
    closed: HashSet<ConnId>,
    counts: Stats,
}

/// Watches a loop from its creation.
pub(super) fn check_order(event_loop: &mut EventLoop<Sim>) -> Rc<RefCell<Order>> {
    let order = Rc::<RefCell<Order>>::default();
    let own = Rc::clone(&order);
    event_loop.observe(move |step: &Step<'_>| own.borrow_mut().look(step));
    order
}

impl Order {
    fn look(&mut self, step: &Step<'_>) {
        let place = |phase: Phase| Phase::ALL.iter().position(|it| *it == phase);
        match *step {
            Step::Phase(phase) => {
                let before = self.phase.replace(phase);
                let next = match before {
                    None => phase == Phase::Poll,
                    // `read` writes in between, and `accept` at its end.
                    Some(Phase::Read | Phase::Accept) if phase == Phase::Write => true,
                    Some(Phase::Write) if phase == Phase::Read => true,
                    Some(before) => place(phase) == place(before).map(|at| at + 1),
                };
                assert!(next, "{phase:?} after {before:?}");
            }
            Step::TurnEnd { turn, .. } => {
                self.counts.turns += 1;
                let last = self.phase.take();
                assert!(matches!(last, Some(Phase::Accept | Phase::Write)), "the turn ended in {last:?}");
                assert_eq!(turn, self.counts.turns);
            }
            Step::Call(call) => assert_eq!(self.call.replace(call), None, "nested in it: {call:?}"),
            Step::Return(call) => assert_eq!(self.call.take(), Some(call)),
            Step::Accept { connection, .. } => {
                self.counts.accepted += 1;
                assert!(self.there.insert(connection), "{connection} came twice");
            }
            Step::Dial { connection, .. } => {
                self.counts.dialed += 1;
                assert!(self.there.insert(connection), "{connection} came twice");
            }
            Step::Close { service, gone } => {
                assert_eq!(self.there.remove(&gone.id), service.is_some(), "{}", gone.id);
                assert!(self.closed.insert(gone.id), "{} was closed twice", gone.id);
                self.counts.closed[gone.reason.index()] += u64::from(service.is_some());
            }
            Step::Read { connection, .. } => {
                self.counts.reads += 1;
                assert!(!self.closed.contains(&connection), "{connection} was read after its close");
            }
            Step::Write { connection, .. } => {
                self.counts.writes += 1;
                assert!(!self.closed.contains(&connection), "{connection} was written after its close");
            }
            _ => {}
        }
    }

    /// The steps that were told are those that the loop has counted.
    pub(super) fn assert_complete(&self, stats: &Stats) {
        let told = &self.counts;
        assert_eq!((told.turns, told.reads, told.writes), (stats.turns, stats.reads, stats.writes));
        assert_eq!((told.accepted, told.dialed), (stats.accepted, stats.dialed));
        assert_eq!(told.closed, stats.closed);
        assert!(self.call.is_none() && self.there.is_empty());
    }
}

#[test]
fn a_flood_that_is_written_in_the_middle_of_read_keeps_the_order_of_phases() {
    let mut test = Setup::default().build(echo);
    let order = check_order(&mut test.event_loop);
    let steps = record(&mut test.event_loop);
    let peers: Vec<PeerId> = (0..40).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    peers.iter().for_each(|&peer| test.script.feed(peer, &[b'x'; 60_000]));
    test.turn_until_quiet();
    let phases = steps.borrow();
    let back = phases.windows(2).any(|pair| pair[0].starts_with("write #") && pair[1] == "read");
    assert!(back, "`read` went on after a write");
    drop(phases);
    peers.iter().for_each(|&peer| test.script.reset(peer));
    test.event_loop.table.stop = Some(Stop::Now);
    test.turn_until_quiet();
    order.borrow().assert_complete(&test.event_loop.table.cx.stats);
}

/// Records the kinds of the steps that it gets.
struct Sparing(Rc<RefCell<Vec<String>>>);

impl Observer for Sparing {
    fn observe(&mut self, step: &Step<'_>) {
        if let Step::TurnEnd { stats, .. } = step {
            assert!(stats.turns > 0 && stats.writes <= stats.reads);
        }
        let text = format!("{step:?}");
        let kind = text.split([' ', '(']).next().unwrap_or_default();
        self.0.borrow_mut().push(kind.to_string());
    }

    fn wants_messages(&self) -> bool {
        false
    }
}

#[test]
fn an_observer_that_wants_no_messages_gets_turns_and_connections_also_beside_one_that_does() {
    for beside in [false, true] {
        let kinds = Rc::new(RefCell::new(Vec::new()));
        let mut test = socket_limits(no_idle()).build(echo);
        test.event_loop.observe(Sparing(Rc::clone(&kinds)));
        let all = Rc::new(RefCell::new(0));
        if beside {
            let own = Rc::clone(&all);
            test.event_loop.observe(move |_: &Step<'_>| *own.borrow_mut() += 1);
        }
        let (peer, _) = test.accept();
        test.script.feed(peer, b"hello");
        test.turn_until_quiet();
        test.script.end(peer);
        test.turn_until_quiet();
        let kinds = kinds.borrow();
        for wanted in ["Woken", "Accept", "Close", "TurnEnd"] {
            assert!(kinds.iter().any(|kind| kind == wanted), "{wanted}: {kinds:?}");
        }
        for left_out in ["Phase", "Event", "Call", "Return", "Read", "Send", "Write", "Fin"] {
            assert!(!kinds.iter().any(|kind| kind == left_out), "{left_out}: {kinds:?}");
        }
        assert!(!beside || *all.borrow() > kinds.len() + 10);
    }
}

/// Wants every tenth turn, and no messages; records the turns of which it is told, and connections.
struct Tenth(Rc<RefCell<Vec<(u64, bool)>>>);

impl Observer for Tenth {
    fn observe(&mut self, step: &Step<'_>) {
        match step {
            Step::Woken { turn, .. } => self.0.borrow_mut().push((*turn, false)),
            Step::TurnEnd { turn, .. } => self.0.borrow_mut().push((*turn, true)),
            _ => {}
        }
    }

    fn wants_messages(&self) -> bool {
        false
    }

    fn next_turn(&self, turn: u64) -> u64 {
        turn / 10 * 10 + 10
    }
}

#[test]
fn an_observer_is_told_of_the_turns_it_asks_for_and_of_the_end_of_those_with_another_step() {
    let told = Rc::new(RefCell::new(Vec::new()));
    let mut test = socket_limits(no_idle()).build(echo);
    test.event_loop.observe(Tenth(Rc::clone(&told)));
    let turn_to = |test: &mut TestLoop, turn| {
        while test.event_loop.table.cx.stats.turns < turn {
            test.turn();
        }
    };
    turn_to(&mut test, 25);
    assert_eq!(told.take(), [(10, false), (10, true), (20, false), (20, true)]);
    let (peer, _) = test.accept();
    let ends = told.take();
    assert!(matches!(ends[..], [(26.., true)]), "the turn of the accept: {ends:?}");
    test.script.feed(peer, b"hello");
    turn_to(&mut test, 39);
    assert_eq!(told.take(), [(30, false), (30, true)]);
}
