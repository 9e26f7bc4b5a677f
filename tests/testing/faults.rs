//! Faults of a proxy on the bench: what each side gets, and when.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tidemill::observer::Step;
use tidemill::services::{Chance, Fault, FaultAt, Faults, Proxy, Split};
use tidemill::testing::{Bench, DialAnswer, Peer, PeerEnd, seeds};

const UPSTREAM: &str = "10.0.0.7:80";
const OTHER: &str = "10.0.0.8:80";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn always(at: FaultAt) -> Option<Chance> {
    Some(Chance { percent: 100.0, at })
}

fn both(fault: &Fault) -> Faults {
    Faults { up: fault.clone(), down: fault.clone() }
}

fn up(fault: Fault) -> Faults {
    Faults { up: fault, down: Fault::default() }
}

fn to(upstreams: &[&str]) -> Proxy {
    Proxy::to(upstreams.iter().map(|to| to.parse().unwrap()).collect()).check_every(None)
}

fn serve(mut bench: Bench, proxy: Proxy) -> Bench {
    let limits = proxy.limits();
    bench.serve_with(proxy, limits);
    for upstream in [UPSTREAM, OTHER] {
        bench.set_dial(upstream, DialAnswer::Accept);
    }
    bench
}

/// A client and its upstream, through a proxy with these faults.
fn pair(bench: Bench, faults: Faults) -> (Bench, Peer, Peer) {
    let mut bench = serve(bench, to(&[UPSTREAM]).fault(None, faults));
    let client = bench.connect();
    let upstream = bench.upstream(UPSTREAM);
    (bench, client, upstream)
}

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn a_proxy_whose_faults_are_all_zero_takes_the_same_steps_as_one_without() {
    let zero = Some(Chance { percent: 0.0, at: FaultAt::Bytes(0) });
    let zero = Fault { cut: zero, reset: zero, stall: zero, ..Fault::default() };
    for seed in seeds(20) {
        let hash = |proxy: Proxy| {
            let mut bench = serve(Bench::seeded(seed), proxy);
            let client = bench.connect();
            let upstream = bench.upstream(UPSTREAM);
            bench.say(client, pattern(300_000));
            bench.say(upstream, "answer");
            bench.end(client);
            bench.end(upstream);
            assert_eq!(bench.heard_bytes(upstream), pattern(300_000));
            bench.trace_hash()
        };
        assert_eq!(hash(to(&[UPSTREAM])), hash(to(&[UPSTREAM]).fault(None, both(&zero)).fault_seed(seed)));
    }
}

#[test]
fn bytes_and_the_end_are_late_by_the_latency_and_not_by_more_than_jitter_and_two_ticks() {
    let fault = Fault { latency: ms(50), jitter: ms(10), ..Fault::default() };
    let (mut bench, client, upstream) = pair(Bench::new(), both(&fault));
    for _ in 0..20 {
        bench.say(client, "question");
        bench.advance(ms(39));
        assert_eq!(bench.peek(upstream), "");
        bench.advance(ms(41));
        assert_eq!(bench.heard(upstream), "question");
    }
    bench.say(upstream, "answer");
    bench.end(upstream);
    bench.advance(ms(39));
    assert_eq!((bench.peek(client), bench.ended(client)), (String::new(), None));
    bench.advance(ms(41));
    assert_eq!((bench.heard(client), bench.ended(client)), ("answer".into(), Some(PeerEnd::Fin)));
}

#[test]
fn what_is_sent_while_bytes_are_late_is_late_by_the_same_time_and_not_behind_them() {
    let fault = Fault { latency: ms(100), ..Fault::default() };
    let (mut bench, client, upstream) = pair(Bench::new(), both(&fault));
    for n in 0..10 {
        bench.say(client, n.to_string());
        bench.advance(ms(30));
    }
    assert!(bench.peek(upstream).len() >= 6, "{:?}", bench.peek(upstream));
    bench.advance(ms(100));
    assert_eq!(bench.heard(upstream), "0123456789");
}

#[test]
fn pieces_are_written_one_by_one_with_a_gap_between_them() {
    let split = Some(Split { size: 1, spread: 0, gap: ms(20) });
    let (mut bench, client, upstream) = pair(Bench::new(), up(Fault { split, ..Fault::default() }));
    bench.say(client, "abc");
    assert_eq!(bench.peek(upstream), "a");
    bench.advance(ms(40));
    assert_eq!(bench.peek(upstream), "ab");
    bench.advance(ms(40));
    assert_eq!(bench.peek(upstream), "abc");
    let split = Some(Split { size: 3, spread: 0, gap: Duration::ZERO });
    let (mut bench, client, upstream) = pair(Bench::new(), up(Fault { split, ..Fault::default() }));
    let writes = Rc::new(RefCell::new(Vec::new()));
    let seen = writes.clone();
    bench.observe(move |step: &Step<'_>| {
        if let Step::Write { result: Ok(n), .. } = step {
            seen.borrow_mut().push(*n);
        }
    });
    bench.say(client, "abcdefgh");
    assert_eq!(bench.heard(upstream), "abcdefgh");
    assert_eq!(*writes.borrow(), [3, 3, 2]);
}

#[test]
fn a_cut_gives_both_sides_an_end_after_so_many_bytes() {
    let cut = Fault { cut: always(FaultAt::Bytes(5)), ..Fault::default() };
    let (mut bench, client, upstream) = pair(Bench::new(), up(cut));
    bench.say(upstream, "not touched");
    bench.say(client, "hel");
    bench.say(client, "lo world");
    assert_eq!((bench.heard(upstream), bench.ended(upstream)), ("hello".into(), Some(PeerEnd::Fin)));
    assert_eq!((bench.heard(client), bench.ended(client)), ("not touched".into(), Some(PeerEnd::Fin)));
}

#[test]
fn a_reset_reaches_both_sides_behind_the_bytes_before_it() {
    for latency in [ms(0), ms(30)] {
        let fault = Fault { latency, reset: always(FaultAt::Bytes(100_000)), ..Fault::default() };
        let (mut bench, client, upstream) = pair(Bench::new(), Faults { up: Fault::default(), down: fault });
        bench.say(upstream, pattern(200_000));
        bench.advance(ms(100));
        assert_eq!(bench.heard_bytes(client), pattern(200_000)[..100_000]);
        assert_eq!(
            (bench.ended(client), bench.ended(upstream)),
            (Some(PeerEnd::Reset), Some(PeerEnd::Reset))
        );
    }
}

#[test]
fn a_reset_before_the_first_byte_comes_when_the_upstream_is_connected() {
    let (bench, client, upstream) =
        pair(Bench::new(), up(Fault { reset: always(FaultAt::Bytes(0)), ..Fault::default() }));
    assert_eq!((bench.ended(client), bench.ended(upstream)), (Some(PeerEnd::Reset), Some(PeerEnd::Reset)));
}

#[test]
fn nothing_passes_a_stall_and_the_other_direction_goes_on() {
    let stall = Fault { stall: always(FaultAt::Time(ms(500))), ..Fault::default() };
    let (mut bench, client, upstream) = pair(Bench::new(), up(stall));
    bench.say(client, "before");
    bench.advance(ms(520));
    bench.say(client, "after");
    bench.end(client);
    bench.say(upstream, "answer");
    assert_eq!((bench.heard(upstream), bench.heard(client)), ("before".into(), "answer".into()));
    assert_eq!((bench.ended(upstream), bench.ended(client)), (None, None));
}

#[test]
fn a_stalled_connection_can_be_cut_after_a_time() {
    let (stall, cut) = (always(FaultAt::Bytes(0)), always(FaultAt::Time(ms(500))));
    let (mut bench, client, upstream) = pair(Bench::new(), up(Fault { stall, cut, ..Fault::default() }));
    bench.say(client, "lost");
    bench.advance(ms(480));
    assert_eq!((bench.ended(client), bench.ended(upstream)), (None, None));
    bench.advance(ms(40));
    assert_eq!((bench.ended(client), bench.ended(upstream)), (Some(PeerEnd::Fin), Some(PeerEnd::Fin)));
    assert_eq!(bench.heard(upstream), "");
}

#[test]
fn a_rate_holds_and_needs_no_detour() {
    let fault = Fault { rate: Some(100_000), ..Fault::default() };
    let (mut bench, client, upstream) = pair(Bench::new(), up(fault));
    bench.say(client, pattern(400_000));
    bench.advance(Duration::from_secs(2));
    let heard = bench.heard_bytes(upstream).len();
    assert!((195_000..=215_000).contains(&heard), "{heard} bytes in 2 s, an eighth of a second's at once");
    let id = bench.id(client).expect("it is there");
    assert!(bench.sockets().get(id).expect("it is open").piped_to().is_some());
}

/// Which of twenty connections are cut, and after how many of their bytes.
fn cuts(mut bench: Bench, faults: Faults, seed: u64) -> Vec<usize> {
    bench = serve(bench, to(&[UPSTREAM]).fault(None, faults).fault_seed(seed));
    let one = |_| {
        let client = bench.connect();
        let upstream = bench.upstream(UPSTREAM);
        bench.say(client, pattern(100_000));
        // A simulated kernel that takes half of a piece delays the next one by a tick.
        bench.advance(ms(4_000));
        bench.heard_bytes(upstream).len()
    };
    (0..20).map(one).collect()
}

#[test]
fn a_seed_repeats_its_faults_however_the_bytes_arrive() {
    let split = Some(Split { size: 700, spread: 300, gap: Duration::ZERO });
    let half = Some(Chance { percent: 50.0, at: FaultAt::Random });
    let faults =
        up(Fault { cut: half, reset: half, split, jitter: ms(5), latency: ms(5), ..Fault::default() });
    let first = cuts(Bench::new(), faults.clone(), 4);
    assert!(first.contains(&100_000) && first.iter().filter(|&&n| n < 100_000).count() > 5, "{first:?}");
    for seed in seeds(3) {
        assert_eq!(cuts(Bench::seeded(seed), faults.clone(), 4), first);
    }
    assert_ne!(cuts(Bench::new(), faults, 5), first);
}

#[test]
fn late_and_split_bytes_arrive_complete_and_in_order_both_ways() {
    let split = Some(Split { size: 900, spread: 899, gap: Duration::ZERO });
    let fault = Fault { latency: ms(20), jitter: ms(20), split, slow_close: ms(30), ..Fault::default() };
    for seed in seeds(10) {
        let (mut bench, client, upstream) = pair(Bench::seeded(seed), both(&fault));
        bench.say(client, pattern(150_000));
        bench.say(upstream, pattern(70_000));
        bench.end(client);
        bench.end(upstream);
        bench.advance(ms(2_000));
        assert_eq!(bench.heard_bytes(upstream), pattern(150_000));
        assert_eq!(bench.heard_bytes(client), pattern(70_000));
        assert_eq!((bench.ended(client), bench.ended(upstream)), (Some(PeerEnd::Fin), Some(PeerEnd::Fin)));
    }
}

#[test]
fn a_receiver_that_does_not_read_stops_the_sender_and_gets_all_later() {
    let fault = Fault { latency: ms(10), ..Fault::default() };
    let (mut bench, client, upstream) = pair(Bench::new(), both(&fault));
    bench.stop_reading(upstream);
    let all = pattern(4 << 20);
    bench.say(client, &all);
    bench.advance(ms(500));
    let unread = bench.unread(client);
    assert!(unread > 2 << 20, "the proxy holds 1 MiB and a queue: {unread} of 4 MiB are unread");
    bench.say(upstream, "the other direction");
    bench.advance(ms(30));
    assert_eq!(bench.heard(client), "the other direction");
    bench.read_again(upstream);
    bench.advance(ms(2_000));
    assert!(bench.heard_bytes(upstream) == all);
}

#[test]
fn a_client_that_resets_has_its_upstream_reset_behind_what_it_said() {
    let fault = Fault { latency: ms(50), ..Fault::default() };
    let (mut bench, client, upstream) = pair(Bench::new(), both(&fault));
    bench.say(client, "half a mess");
    bench.reset(client);
    assert_eq!((bench.peek(upstream), bench.ended(upstream)), (String::new(), None));
    bench.advance(ms(100));
    assert_eq!((bench.heard(upstream), bench.ended(upstream)), ("half a mess".into(), Some(PeerEnd::Reset)));
}

#[test]
fn faults_of_one_upstream_leave_the_others_alone() {
    let slow = both(&Fault { latency: ms(50), ..Fault::default() });
    let proxy = to(&[UPSTREAM, OTHER]).fault(Some(OTHER.parse().unwrap()), slow);
    let mut bench = serve(Bench::new(), proxy);
    let clients = [bench.connect(), bench.connect()];
    let upstreams = [bench.upstream(UPSTREAM), bench.upstream(OTHER)];
    clients.iter().for_each(|&client| bench.say(client, "hello"));
    assert_eq!(upstreams.map(|upstream| bench.peek(upstream)), ["hello", ""]);
    bench.advance(ms(70));
    assert_eq!(upstreams.map(|upstream| bench.peek(upstream)), ["hello", "hello"]);
}
