//! I: the syntax of addresses, and lists of them. Four scenarios.

use std::net::IpAddr;

use tidemill::{AccessPolicy, Action, Address, IpRange, Refusal, RefuseMode, Rules};

use crate::fixture::{End, Event, Fixture, Peer};

#[test]
fn i1_what_is_an_ip_address_and_what_is_not() {
    let four = ["127.0.0.1", "0.0.0.0", "255.255.255.255", "1.2.3.4"];
    let six =
        ["::", "::1", "2001:db8::7", "fe80::1", "::ffff:1.2.3.4", "1:2:3:4:5:6:7:8", "1::8", "::1.2.3.4"];
    let none = [
        "",
        "x",
        "127.0.0",
        "127.0.0.1.",
        "127.0.0.256",
        "127.000.0.01",
        "127.0.0.1/8",
        " 127.0.0.1",
        "1:2:3:4:5:6:7",
        "1:2:3:4:5:6:7:8:9",
        ":::",
        "1::2::3",
        "::1/64",
        "::g",
        "::1.2.3",
        "[::1]",
        "0x7f.1",
        "2130706433",
    ];
    assert!(four.iter().all(|text| text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4())));
    assert!(six.iter().all(|text| text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6())));
    for text in none {
        assert!(text.parse::<IpAddr>().is_err(), "{text:?}");
        let with_port = format!("{text}:80").parse();
        assert!(text == "[::1]" || !matches!(with_port, Ok(Address::Inet(_))), "{text:?} with a port");
    }
    let scoped: Address = "[fe80::1%2]:80".parse().expect("an address with a zone");
    assert_eq!(scoped.to_string(), "[fe80::1%2]:80");
}

#[test]
fn i2_rules_can_be_addresses_ranges_and_networks_and_mapped_addresses_are_ipv4() {
    let mut rules = Rules::default();
    for text in [
        "123.123.123.123",
        "10.0.0.1-10.0.0.10",
        "192.168.0.0/16",
        "8592:757c:efae::/48",
        "2001:db8::-2001:db8::ff",
    ] {
        rules.deny(text.parse().expect(text), RefuseMode::End);
    }
    let mut denied = |text: &str| rules.decide(text.parse().expect("an address")) != Action::Allow;
    for text in [
        "123.123.123.123",
        "10.0.0.1",
        "10.0.0.5",
        "10.0.0.10",
        "192.168.255.255",
        "8592:757c:efae:1::",
        "2001:db8::ff",
    ] {
        assert!(denied(text), "{text}");
    }
    for text in ["::ffff:123.123.123.123", "::ffff:7b7b:7b7b", "::ffff:10.0.0.5"] {
        assert!(denied(text), "{text} is of version four");
    }
    for text in [
        "123.123.123.122",
        "10.0.0.11",
        "10.0.0.0",
        "192.167.0.1",
        "8592:757c:efaf::",
        "2001:db8::100",
        "::1",
    ] {
        assert!(!denied(text), "{text}");
    }
    let gone: IpRange = "192.168.0.0/16".parse().expect("a range");
    assert_eq!((rules.remove(gone), rules.len()), (1, 4));
    assert_eq!(rules.decide("192.168.0.1".parse().expect("an address")), Action::Allow);
}

#[test]
fn i3_a_listener_refuses_denied_addresses_and_reports_it() {
    let mut fixture = Fixture::new().on_open(|socket| socket.send(b"welcome"));
    let mut guard = AccessPolicy::default();
    guard.rules.deny("127.0.0.66".parse().expect("a range"), RefuseMode::Reset);
    guard.rules.deny("127.0.0.67".parse().expect("a range"), RefuseMode::End);
    fixture.reactor.set_access_policy(fixture.service, guard);
    let address = fixture.listen();
    let from = |last: u8| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, last], 0)).into()).expect("an address of ours");
        socket.connect(&address.into()).expect("a connection");
        Peer::of(socket.into())
    };
    assert_eq!(fixture.receive_end(&mut from(66)), (vec![], End::Reset));
    assert_eq!(fixture.receive_end(&mut from(67)), (vec![], End::Clean));
    assert_eq!(fixture.receive(&mut from(68), 7), b"welcome");
    let refused = fixture.refused();
    assert_eq!(refused.iter().map(|refused| refused.reason).collect::<Vec<_>>(), [Refusal::Denied; 2]);
    let hits: Vec<u64> =
        fixture.reactor.rules(fixture.service).expect("a guard").iter().map(|rule| rule.hits).collect();
    assert_eq!(hits, [1, 1]);
}

#[test]
fn i4_every_address_of_a_name_is_checked_against_the_list_before_connecting() {
    let mut fixture = Fixture::new();
    let server = crate::fixture::TestServer::new();
    let good = server.address();
    fixture.reactor.look_up_with(move |_, _| Ok(vec!["127.0.0.66:9".parse().expect("an address"), good]));
    let mut options = tidemill::DialOptions::default();
    options.rules.deny("127.0.0.66".parse().expect("a range"), RefuseMode::End);
    let id = fixture.reactor.dial_with("any.example:1", fixture.service, options.clone()).expect("a slot");
    let _peer = server.accept(&mut fixture);
    fixture.until("it is connected", |fixture| fixture.count(Event::Connected(id)) == 1);
    let id = fixture.reactor.dial_with("127.0.0.66:9", fixture.service, options).expect("a slot");
    fixture.until_closed(id);
    assert_eq!(fixture.dial_error(id), "cannot connect to 127.0.0.66:9: a rule forbids this address");
}
