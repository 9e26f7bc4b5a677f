//! TLS between the ends of a bench.

use tidemill::services::{Echo, Proxy};
use tidemill::testing::{Bench, DialAnswer, Peer, PeerEnd, seeds};
use tidemill::tls::{CertifiedKey, Client, ClientOptions, RootCerts, Server, ServerOptions, Trust};
use tidemill::{CloseReason, DialOptions, FilterConfig, ListenOptions};

/// The filters of a server for `a.example`, and of a client that trusts only it.
fn both() -> (FilterConfig, FilterConfig) {
    let made = rcgen::generate_simple_self_signed(["a.example".to_string()]).unwrap();
    let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let identity = CertifiedKey::from_pem(pem.as_bytes(), key.as_bytes()).unwrap();
    let server =
        Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() }).unwrap();
    let trust = Trust::Only(RootCerts::from_pem(pem.as_bytes()).unwrap());
    let client = Client::new(ClientOptions { trust, ..ClientOptions::default() }).unwrap();
    (server.filter_config(), client.filter_config())
}

/// An echo over TLS, and a client that has begun its handshake.
fn echo_over_tls(mut bench: Bench, client_name: &str) -> (Bench, Peer) {
    let (server, client) = both();
    let echo = bench.add(Echo::raw());
    let options = ListenOptions { filter: Some(server), ..ListenOptions::default() };
    bench.listen_with("10.0.0.2:443", echo, &options).unwrap();
    let ann = bench.connect();
    bench.start_filter(ann, &client, client_name);
    (bench, ann)
}

#[test]
fn a_client_of_rustls_talks_to_a_tls_listener_whatever_the_seed() {
    let calm = (0, Bench::new());
    for (seed, bench) in [calm].into_iter().chain(seeds(10).map(|seed| (seed, Bench::seeded(seed)))) {
        let (mut bench, ann) = echo_over_tls(bench, "a.example:443");
        let text = "hello ".repeat(5_000);
        bench.say(ann, &text);
        assert_eq!(bench.heard(ann), text, "seed {seed}");
        assert_eq!(bench.filter_info(ann).unwrap().version, "TLSv1.3");
        bench.end(ann);
        assert_eq!((bench.closed(ann), bench.ended(ann)), (Some(CloseReason::Finished), Some(PeerEnd::Fin)));
    }
}

#[test]
fn a_handshake_survives_split_bytes() {
    let mut bench = Bench::new();
    bench.split_every(1);
    let (mut bench, ann) = echo_over_tls(bench, "a.example:443");
    bench.say(ann, "hello");
    assert_eq!(bench.heard(ann), "hello");
}

#[test]
fn a_client_that_leaves_out_close_notify_is_truncated() {
    let (mut bench, ann) = echo_over_tls(Bench::new(), "a.example:443");
    bench.say(ann, "hello");
    bench.truncate(ann);
    assert_eq!(bench.closed(ann), Some(CloseReason::Truncated));
}

#[test]
fn a_client_that_does_not_trust_the_certificate_says_so() {
    let (mut bench, ann) = echo_over_tls(Bench::new(), "b.example:443");
    let error = bench.filter_error(ann).expect("the name is another");
    assert!(error.contains("b.example"), "{error}");
    bench.end(ann);
    assert_eq!(bench.closed(ann), Some(CloseReason::Handshake));
}

#[test]
fn a_service_dials_another_one_over_tls() {
    let (server, client) = both();
    let mut bench = Bench::new();
    bench.resolve("a.example", &["10.0.0.2"]);
    bench.serve(Proxy::to(vec!["a.example:443".parse().unwrap()]).filter_upstreams(Some(client)));
    let echo = bench.add(Echo::raw());
    let options = ListenOptions { filter: Some(server), ..ListenOptions::default() };
    bench.listen_with("10.0.0.2:443", echo, &options).unwrap();
    let ann = bench.connect();
    bench.say(ann, "through two ends of TLS");
    assert_eq!(bench.heard(ann), "through two ends of TLS");
    assert_eq!(bench.stats().handshakes, 2);
}

#[test]
fn a_test_plays_the_upstream_of_a_dial_over_tls() {
    let (server, client) = both();
    let mut bench = Bench::new();
    let echo = bench.add(Echo::raw());
    bench.resolve("a.example", &["10.0.0.7"]);
    bench.set_dial("10.0.0.7:443", DialAnswer::Accept);
    let options = DialOptions { filter: Some(client), ..DialOptions::default() };
    bench.dial_with("a.example:443", echo, options).unwrap();
    let upstream = bench.upstream("10.0.0.7:443");
    bench.start_filter(upstream, &server, "10.0.0.2:5000");
    bench.say(upstream, "hello");
    assert_eq!(bench.heard(upstream), "hello");
    bench.end(upstream);
    assert_eq!(bench.closed(upstream), Some(CloseReason::Finished));
}
