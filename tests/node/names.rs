//! D: host names, also with several addresses. Ten scenarios.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidemill::{CloseReason, DialOptions, Family, RefuseMode, State};

use crate::fixture::{BlackHole, End, Event, Fixture, MS, TestServer, closed_port};

/// A fixture whose resolver returns these addresses for every name, and the number of its calls.
fn resolving(addresses: Vec<SocketAddr>) -> (Fixture, Arc<AtomicUsize>) {
    let mut fixture = Fixture::new().on_connected(|socket| socket.send(b"hi"));
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    fixture.reactor.look_up_with(move |_, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(addresses.clone())
    });
    (fixture, asked)
}

#[test]
fn d1_an_ip_address_is_not_looked_up() {
    let (mut fixture, asked) = resolving(vec![]);
    let server = TestServer::new();
    let id = fixture.dial(server.address().to_string());
    let mut peer = server.accept(&mut fixture);
    assert_eq!(fixture.receive(&mut peer, 2), b"hi");
    assert_eq!((asked.load(Ordering::SeqCst), fixture.count(Event::Connected(id))), (0, 1));
}

#[test]
fn d2_a_custom_lookup_function_is_called_once_for_many_dials() {
    let server = TestServer::new();
    let (mut fixture, asked) = resolving(vec![server.address()]);
    let ids: Vec<_> = (0..10).map(|_| fixture.dial("any.example:1")).collect();
    let _peers: Vec<_> = ids.iter().map(|_| server.accept(&mut fixture)).collect();
    fixture
        .until("all are connected", |fixture| ids.iter().all(|&id| fixture.count(Event::Connected(id)) == 1));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn d3_an_error_of_the_lookup_is_one_error_and_no_connect() {
    let mut fixture = Fixture::new();
    fixture.reactor.look_up_with(|server, _| Err(io::Error::other(format!("{server} is not known here"))));
    let id = fixture.dial("a.example:80");
    assert_eq!(fixture.until_closed(id), CloseReason::Unresolved);
    assert_eq!(fixture.dial_error(id), "cannot connect to a.example:80: a.example is not known here");
    assert_eq!(
        (fixture.close_reasons(id).len(), fixture.closed_info(id).dial_error.expect("one").attempts().len()),
        (1, 0)
    );
}

#[test]
fn d4_the_system_s_resolver_finds_localhost_and_not_what_does_not_exist() {
    let mut fixture = Fixture::new();
    let server = TestServer::new();
    let id = fixture.dial(format!("localhost:{}", server.address().port()));
    let _peer = server.accept(&mut fixture);
    fixture.until("it is connected", |fixture| fixture.count(Event::Connected(id)) == 1);
    assert_eq!(fixture.with_socket_of(id, |socket| socket.peer_addr().inet()), Some(server.address()));
    let id = fixture.dial("no-such-host.invalid:80");
    assert_eq!(fixture.until_closed(id), CloseReason::Unresolved);
    assert!(
        fixture.dial_error(id).starts_with("cannot connect to no-such-host.invalid:80: "),
        "{}",
        fixture.dial_error(id)
    );
}

#[test]
fn d5_a_dead_ipv6_address_is_followed_by_ipv4_within_300_ms() {
    let hole = BlackHole::on("[::1]");
    let server = TestServer::new();
    let (mut fixture, _) = resolving(vec![hole.address(), server.address()]);
    let mut times = Vec::new();
    // A busy machine may delay two of three attempts.
    while times.len() < 3 && times.iter().all(|took| *took > 300 * MS) {
        let begun = Instant::now();
        let id = fixture.dial("both.example:80");
        let mut peer = server.accept(&mut fixture);
        assert_eq!(fixture.receive(&mut peer, 2), b"hi");
        times.push(begun.elapsed());
        assert_eq!(fixture.with_socket_of(id, |socket| socket.peer_addr().inet()), Some(server.address()));
    }
    assert!(times.iter().all(|took| *took >= 250 * MS), "{times:?}");
    assert!(times.iter().any(|took| *took <= 300 * MS), "{times:?}");
}

#[test]
fn d6_a_slow_address_still_wins_when_the_other_is_dead() {
    let mut hole = BlackHole::on("[::1]");
    let (mut fixture, _) = resolving(vec![hole.address(), closed_port()]);
    let id = fixture.dial("both.example:80");
    fixture.turn_for(500 * MS);
    assert_eq!(fixture.closed(id), None);
    hole.start_accepting();
    fixture.until("the kernel tries again", |fixture| fixture.count(Event::Connected(id)) == 1);
    assert_eq!(fixture.with_socket_of(id, |socket| socket.peer_addr().inet()), Some(hole.address()));
}

#[test]
fn d7_only_one_connection_is_left_of_several_that_succeed() {
    let mut hole = BlackHole::on("[::1]");
    let server = TestServer::new();
    let (mut fixture, _) = resolving(vec![hole.address(), server.address()]);
    let id = fixture.dial("both.example:80");
    let mut peer = server.accept(&mut fixture);
    hole.start_accepting();
    fixture.turn_for(1_300 * MS);
    peer.send("you");
    fixture.until("it arrives", |fixture| fixture.received(id) == b"you");
    assert_eq!((fixture.count(Event::Connected(id)), fixture.reactor.sockets().len()), (1, 1));
    fixture.with_socket_of(id, |socket| socket.close());
    assert_eq!(fixture.receive_end(&mut peer), (b"hi".to_vec(), End::Clean));
}

#[test]
fn d8_when_all_attempts_fail_the_one_error_lists_each_of_them() {
    let hole = BlackHole::on("[::1]");
    let (mut fixture, _) =
        resolving(vec![hole.address(), closed_port(), "127.77.0.2:1".parse().expect("an address")]);
    let options = DialOptions { timeout: Some(2_000 * MS), ..DialOptions::default() };
    let id = fixture.reactor.dial_with("three.example:80", fixture.service, options).expect("a slot");
    assert_eq!(fixture.until_closed(id), CloseReason::ConnectTimeout);
    let hole = hole.address();
    let text = format!(
        "cannot connect to three.example:80: 127.77.0.1:1: connection refused; 127.77.0.2:1: connection refused; \
         {hole}: no answer in time"
    );
    assert_eq!(fixture.dial_error(id), text);
}

#[test]
fn d9_the_attempt_delay_has_a_minimum_and_a_family_can_be_chosen() {
    let hole = BlackHole::on("[::1]");
    let server = TestServer::new();
    let (mut fixture, _) = resolving(vec![hole.address(), server.address()]);
    let options = DialOptions { attempt_delay: Duration::ZERO, ..DialOptions::default() };
    let mut times = Vec::new();
    // A busy machine may delay two of three attempts. The default delay is 250 ms.
    while times.len() < 3 && times.iter().all(|took| *took >= 245 * MS) {
        let begun = Instant::now();
        fixture.reactor.dial_with("both.example:80", fixture.service, options.clone()).expect("a slot");
        let _peer = server.accept(&mut fixture);
        times.push(begun.elapsed());
    }
    assert!(times.iter().all(|took| *took >= 10 * MS), "{times:?}");
    assert!(times.iter().any(|took| *took < 245 * MS), "{times:?}");
    let options = DialOptions { family: Family::V6, timeout: Some(400 * MS), ..DialOptions::default() };
    let id = fixture.reactor.dial_with("both.example:80", fixture.service, options).expect("a slot");
    assert_eq!(fixture.until_closed(id), CloseReason::ConnectTimeout, "version four is not asked");
    let mut options = DialOptions { timeout: Some(400 * MS), ..DialOptions::default() };
    options.rules.deny("127.0.0.0/8".parse().expect("a range"), RefuseMode::End);
    let id = fixture.reactor.dial_with("both.example:80", fixture.service, options).expect("a slot");
    assert_eq!(fixture.until_closed(id), CloseReason::ConnectTimeout, "what a rule forbids is not tried");
}

#[test]
fn d10_with_a_resolver_that_never_answers_each_dial_ends_at_its_timeout_and_the_loop_keeps_turning() {
    let mut fixture = Fixture::new().on_data(|socket, input| socket.send(input.take_all()));
    fixture.reactor.look_up_with(|_, _| {
        // Longer than any test. The process does not wait for the thread.
        std::thread::sleep(Duration::from_secs(600));
        Ok(Vec::new())
    });
    let address = fixture.listen();
    let (mut peer, _) = fixture.connect(address);
    let begun = Instant::now();
    let dials: Vec<_> = (1..=6)
        .map(|n| {
            let options = DialOptions { timeout: Some(n * 100 * MS), ..DialOptions::default() };
            let name = format!("n{n}.example:80");
            (n, fixture.reactor.dial_with(name, fixture.service, options).expect("a slot"))
        })
        .collect();
    fixture.turn_for(20 * MS);
    assert_eq!(fixture.with_socket_of(dials[5].1, |socket| socket.state()), State::Resolving);
    for (n, id) in dials {
        let asked = Instant::now();
        peer.send("ping");
        assert_eq!(fixture.receive(&mut peer, 4), b"ping");
        assert!(asked.elapsed() < 5_000 * MS, "an echo took {:?}", asked.elapsed());
        assert_eq!(fixture.until_closed(id), CloseReason::ConnectTimeout);
        let took = begun.elapsed();
        assert!(took >= n * 100 * MS && took < n * 100 * MS + 5_000 * MS, "dial {n} took {took:?}");
    }
}
