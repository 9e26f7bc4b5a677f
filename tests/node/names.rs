//! D: names, and several addresses for one. Ten scenarios.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidemill::{Closed, DialOptions, Family, Refuse, State};

use crate::desk::{BlackHole, Desk, End, Host, MS, Told, nobody};

/// A desk whose names all stand for these addresses; and how often it was asked.
fn resolving(addresses: Vec<SocketAddr>) -> (Desk, Arc<AtomicUsize>) {
    let mut desk = Desk::new().on_connected(|socket| socket.send(b"hi"));
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    desk.reactor.look_up_with(move |_, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(addresses.clone())
    });
    (desk, asked)
}

#[test]
fn d1_an_ip_address_is_not_looked_up() {
    let (mut desk, asked) = resolving(vec![]);
    let host = Host::new();
    let id = desk.dial(host.address().to_string());
    let mut peer = host.answer(&mut desk);
    assert_eq!(desk.hear(&mut peer, 2), b"hi");
    assert_eq!((asked.load(Ordering::SeqCst), desk.told(Told::Connected(id))), (0, 1));
}

#[test]
fn d2_a_function_of_ones_own_can_look_names_up_and_is_asked_once_for_many() {
    let host = Host::new();
    let (mut desk, asked) = resolving(vec![host.address()]);
    let ids: Vec<_> = (0..10).map(|_| desk.dial("any.example:1")).collect();
    let _peers: Vec<_> = ids.iter().map(|_| host.answer(&mut desk)).collect();
    desk.until("all are connected", |desk| ids.iter().all(|&id| desk.told(Told::Connected(id)) == 1));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn d3_an_error_of_the_lookup_is_one_error_and_no_connect() {
    let mut desk = Desk::new();
    desk.reactor.look_up_with(|host, _| Err(io::Error::other(format!("{host} is not known here"))));
    let id = desk.dial("a.example:80");
    assert_eq!(desk.until_closed(id), Closed::Unresolved);
    assert_eq!(desk.failure(id), "cannot connect to a.example:80: a.example is not known here");
    assert_eq!((desk.farewells(id).len(), desk.departed(id).failure.expect("one").attempts().len()), (1, 0));
}

#[test]
fn d4_the_system_s_resolver_finds_localhost_and_not_what_does_not_exist() {
    let mut desk = Desk::new();
    let host = Host::new();
    let id = desk.dial(format!("localhost:{}", host.address().port()));
    let _peer = host.answer(&mut desk);
    desk.until("it is connected", |desk| desk.told(Told::Connected(id)) == 1);
    assert_eq!(desk.with_socket_of(id, |socket| socket.peer_addr().inet()), Some(host.address()));
    let id = desk.dial("no-such-host.invalid:80");
    assert_eq!(desk.until_closed(id), Closed::Unresolved);
    assert!(
        desk.failure(id).starts_with("cannot connect to no-such-host.invalid:80: "),
        "{}",
        desk.failure(id)
    );
}

#[test]
fn d5_a_dead_address_of_version_six_is_followed_by_version_four_within_300_ms() {
    let hole = BlackHole::on("[::1]");
    let host = Host::new();
    let (mut desk, _) = resolving(vec![hole.address(), host.address()]);
    let mut times = Vec::new();
    // A busy machine may spoil the time twice.
    while times.len() < 3 && times.iter().all(|took| *took > 300 * MS) {
        let begun = Instant::now();
        let id = desk.dial("both.example:80");
        let mut peer = host.answer(&mut desk);
        assert_eq!(desk.hear(&mut peer, 2), b"hi");
        times.push(begun.elapsed());
        assert_eq!(desk.with_socket_of(id, |socket| socket.peer_addr().inet()), Some(host.address()));
    }
    assert!(times.iter().all(|took| *took >= 250 * MS), "{times:?}");
    assert!(times.iter().any(|took| *took <= 300 * MS), "{times:?}");
}

#[test]
fn d6_a_slow_address_still_wins_when_the_other_is_dead() {
    let mut hole = BlackHole::on("[::1]");
    let (mut desk, _) = resolving(vec![hole.address(), nobody()]);
    let id = desk.dial("both.example:80");
    desk.turn_for(500 * MS);
    assert_eq!(desk.closed(id), None);
    hole.open_up();
    desk.until("the kernel tries again", |desk| desk.told(Told::Connected(id)) == 1);
    assert_eq!(desk.with_socket_of(id, |socket| socket.peer_addr().inet()), Some(hole.address()));
}

#[test]
fn d7_only_one_connection_is_left_of_several_that_succeed() {
    let mut hole = BlackHole::on("[::1]");
    let host = Host::new();
    let (mut desk, _) = resolving(vec![hole.address(), host.address()]);
    let id = desk.dial("both.example:80");
    let mut peer = host.answer(&mut desk);
    hole.open_up();
    desk.turn_for(1_300 * MS);
    peer.say("you");
    desk.until("it is heard", |desk| desk.heard(id) == b"you");
    assert_eq!((desk.told(Told::Connected(id)), desk.reactor.sockets().len()), (1, 1));
    desk.with_socket_of(id, |socket| socket.close());
    assert_eq!(desk.hear_end(&mut peer), (b"hi".to_vec(), End::Clean));
}

#[test]
fn d8_when_all_attempts_fail_the_one_error_lists_each_of_them() {
    let hole = BlackHole::on("[::1]");
    let (mut desk, _) =
        resolving(vec![hole.address(), nobody(), "127.77.0.2:1".parse().expect("an address")]);
    let options = DialOptions { timeout: Some(500 * MS), ..DialOptions::default() };
    let id = desk.reactor.dial_with("three.example:80", desk.service, options).expect("a slot");
    assert_eq!(desk.until_closed(id), Closed::ConnectTimeout);
    let hole = hole.address();
    let text = format!(
        "cannot connect to three.example:80: 127.77.0.1:1: connection refused; 127.77.0.2:1: connection refused; \
         {hole}: no answer in time"
    );
    assert_eq!(desk.failure(id), text);
}

#[test]
fn d9_the_stagger_can_be_set_and_has_a_floor_and_a_family_can_be_asked_for() {
    let hole = BlackHole::on("[::1]");
    let host = Host::new();
    let (mut desk, _) = resolving(vec![hole.address(), host.address()]);
    let options = DialOptions { stagger: Duration::ZERO, ..DialOptions::default() };
    let begun = Instant::now();
    desk.reactor.dial_with("both.example:80", desk.service, options).expect("a slot");
    let _peer = host.answer(&mut desk);
    let took = begun.elapsed();
    assert!(took >= 10 * MS && took < 245 * MS, "{took:?}");
    let options = DialOptions { family: Family::V6, timeout: Some(400 * MS), ..DialOptions::default() };
    let id = desk.reactor.dial_with("both.example:80", desk.service, options).expect("a slot");
    assert_eq!(desk.until_closed(id), Closed::ConnectTimeout, "version four is not asked");
    let mut options = DialOptions { timeout: Some(400 * MS), ..DialOptions::default() };
    options.rules.deny("127.0.0.0/8".parse().expect("a range"), Refuse::End);
    let id = desk.reactor.dial_with("both.example:80", desk.service, options).expect("a slot");
    assert_eq!(desk.until_closed(id), Closed::ConnectTimeout, "what a rule forbids is not tried");
}

#[test]
fn d10_with_a_resolver_that_never_answers_each_dial_ends_at_its_own_time_and_the_loop_does_not_notice() {
    let mut desk = Desk::new().on_data(|socket, input| socket.send(input.take_all()));
    desk.reactor.look_up_with(|_, _| {
        // Longer than any test; the process does not wait for it.
        std::thread::sleep(Duration::from_secs(600));
        Ok(Vec::new())
    });
    let address = desk.listen();
    let (mut peer, _) = desk.caller(address);
    let begun = Instant::now();
    let dials: Vec<_> = (1..=6)
        .map(|n| {
            let options = DialOptions { timeout: Some(n * 100 * MS), ..DialOptions::default() };
            let name = format!("n{n}.example:80");
            (n, desk.reactor.dial_with(name, desk.service, options).expect("a slot"))
        })
        .collect();
    desk.turn_for(20 * MS);
    assert_eq!(desk.with_socket_of(dials[5].1, |socket| socket.state()), State::Resolving);
    for (n, id) in dials {
        let asked = Instant::now();
        peer.say("ping");
        assert_eq!(desk.hear(&mut peer, 4), b"ping");
        assert!(asked.elapsed() < 400 * MS, "an echo took {:?}", asked.elapsed());
        assert_eq!(desk.until_closed(id), Closed::ConnectTimeout);
        let took = begun.elapsed();
        assert!(took >= n * 100 * MS && took < n * 100 * MS + 400 * MS, "dial {n} took {took:?}");
    }
}
