//! Clients that a proxy holds while its upstream is away, on the bench.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tidemill::services::Proxy;
use tidemill::testing::{Bench, DialAnswer, Peer, PeerEnd};
use tidemill::{CloseReason, Limits};

const UPSTREAM: &str = "10.0.0.7:80";
const SECOND: Duration = Duration::from_secs(1);

fn serve(proxy: Proxy, connections: usize) -> Bench {
    let mut bench = Bench::new_with(Limits { connections, ..Limits::default() });
    let limits = proxy.limits();
    bench.serve_with(proxy, limits);
    bench.set_dial(UPSTREAM, DialAnswer::Refuse);
    bench
}

fn proxy() -> Proxy {
    Proxy::to(vec![UPSTREAM.parse().unwrap()])
}

#[test]
fn clients_are_held_while_the_upstream_is_away_and_are_connected_in_their_order() {
    let mut bench = serve(proxy().hold(Some(30 * SECOND)), 1_000);
    let clients: Vec<Peer> = (0..200).map(|_| bench.connect()).collect();
    for (n, &client) in clients.iter().enumerate() {
        bench.say(client, format!("hello {n}"));
    }
    bench.advance(20 * SECOND);
    assert!(clients.iter().all(|&client| bench.ended(client).is_none()));
    assert!(bench.dialed().len() < 200 + 20 * 11, "one tries for all: {} dials", bench.dialed().len());
    bench.set_dial(UPSTREAM, DialAnswer::Accept);
    bench.advance(Duration::from_millis(120));
    for n in 0..clients.len() {
        let upstream = bench.upstream(UPSTREAM);
        assert_eq!(bench.heard(upstream), format!("hello {n}"));
    }
}

#[test]
fn a_client_is_held_for_the_time_that_was_set_and_then_ended() {
    let mut bench = serve(proxy().hold(Some(3 * SECOND)), 100);
    let client = bench.connect();
    bench.advance(Duration::from_millis(2_900));
    assert_eq!(bench.ended(client), None);
    bench.advance(Duration::from_millis(300));
    assert_eq!(bench.ended(client), Some(PeerEnd::Fin));
    let unheld = serve(proxy().hold(None), 100);
    let (mut bench, client) = {
        let mut bench = unheld;
        let client = bench.connect();
        (bench, client)
    };
    bench.advance(Duration::from_millis(10));
    assert_eq!(bench.ended(client), Some(PeerEnd::Fin));
}

#[test]
fn more_than_1024_clients_are_not_held() {
    let mut bench = serve(proxy().hold(Some(30 * SECOND)), 4_000);
    let clients: Vec<Peer> = (0..1_030).map(|_| bench.connect()).collect();
    let held = clients.iter().filter(|&&client| bench.ended(client).is_none()).count();
    assert_eq!(held, 1_024);
}

#[test]
fn nothing_is_dialed_for_a_held_client_that_has_left() {
    let mut bench = serve(proxy().hold(Some(30 * SECOND)), 100);
    let client = bench.connect();
    bench.reset(client);
    let dials = bench.dialed().len();
    bench.advance(2 * SECOND);
    assert_eq!(bench.dialed().len(), dials);
}

#[test]
fn held_clients_do_not_delay_a_shutdown() {
    let mut bench = serve(proxy().hold(Some(30 * SECOND)), 100);
    let client = bench.connect();
    bench.shutdown(SECOND);
    bench.advance(2 * SECOND);
    assert!(bench.ended(client).is_some() && bench.is_finished());
}

#[test]
fn an_upstream_is_asked_for_with_the_first_client_and_dismissed_when_none_is_left_for_a_time() {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let log = asked.clone();
    let proxy =
        proxy().hold(Some(10 * SECOND)).on_demand(5 * SECOND, move |needed| log.borrow_mut().push(needed));
    let mut bench = serve(proxy, 100);
    assert!(asked.borrow().is_empty());
    let client = bench.connect();
    assert_eq!(*asked.borrow(), [true]);
    bench.advance(SECOND);
    bench.set_dial(UPSTREAM, DialAnswer::Accept);
    bench.advance(SECOND);
    bench.upstream(UPSTREAM);
    assert!(asked.borrow().iter().all(|&needed| needed));
    bench.advance(60 * SECOND);
    bench.reset(client);
    assert_eq!(bench.closed(client), Some(CloseReason::Reset));
    bench.advance(4 * SECOND);
    let second = bench.connect();
    bench.advance(10 * SECOND);
    assert!(asked.borrow().iter().all(|&needed| needed), "another client came within five seconds");
    bench.reset(second);
    bench.advance(4 * SECOND);
    assert!(asked.borrow().iter().all(|&needed| needed));
    // The upstream's side lingers for a second.
    bench.advance(3 * SECOND);
    assert_eq!(asked.borrow().last(), Some(&false));
}
