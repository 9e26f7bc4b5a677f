//! The proxy on the bench: upstreams that refuse, hang or end, and what its client sees of it.

use std::time::Duration;

use tidemill::CloseReason;
use tidemill::framing::proxy_header::HeaderVersion;
use tidemill::services::Proxy;
use tidemill::testing::{Bench, DialAnswer, PeerEnd, seeds};

const FIRST: &str = "10.0.0.7:80";
const SECOND: &str = "10.0.0.8:80";

/// A proxy to two upstreams, without checks of its own.
fn proxy() -> Proxy {
    Proxy::to(vec![FIRST.parse().unwrap(), SECOND.parse().unwrap()]).check_every(None)
}

fn serve(mut bench: Bench, proxy: Proxy) -> Bench {
    let limits = proxy.limits();
    bench.serve_with(proxy, limits);
    bench
}

/// Which upstream the next client reaches.
fn reached(bench: &mut Bench) -> &'static str {
    let client = bench.connect();
    bench.say(client, "hello");
    let dialed = bench.dialed();
    let to = if dialed.last().map(String::as_str) == Some(FIRST) { FIRST } else { SECOND };
    let upstream = bench.upstream(to);
    assert_eq!(bench.heard(upstream), "hello", "after {dialed:?}");
    bench.reset(client);
    to
}

#[test]
fn an_upstream_that_refuses_is_left_out_for_ten_seconds() {
    let mut bench = serve(Bench::new(), proxy());
    bench.set_dial(FIRST, DialAnswer::Refuse);
    bench.set_dial(SECOND, DialAnswer::Accept);
    assert_eq!(reached(&mut bench), SECOND);
    assert_eq!(bench.dialed(), [FIRST, SECOND], "the second is tried at once");
    bench.set_dial(FIRST, DialAnswer::Accept);
    bench.advance(Duration::from_secs(9));
    assert_eq!((reached(&mut bench), reached(&mut bench)), (SECOND, SECOND));
    bench.advance(Duration::from_secs(1));
    let again = [reached(&mut bench), reached(&mut bench)];
    assert!(again.contains(&FIRST), "{again:?}");
}

#[test]
fn a_client_is_not_read_until_an_upstream_is_connected() {
    let mut bench = serve(Bench::new(), proxy());
    bench.set_dial(FIRST, DialAnswer::Hang);
    bench.set_dial(SECOND, DialAnswer::Hang);
    let client = bench.connect();
    bench.say(client, "early");
    assert_eq!(bench.unread(client), 5);
    bench.set_dial(FIRST, DialAnswer::Accept);
    let upstream = bench.upstream(FIRST);
    assert_eq!((bench.unread(client), bench.heard(upstream)), (0, "early".to_string()));
}

#[test]
fn a_slow_upstream_is_overtaken_after_a_second_and_the_client_waits_no_longer_than_ten() {
    let mut bench = serve(Bench::new(), proxy());
    bench.set_dial(FIRST, DialAnswer::Hang);
    bench.set_dial(SECOND, DialAnswer::Hang);
    let client = bench.connect();
    bench.advance(Duration::from_millis(900));
    assert_eq!(bench.dialed(), [FIRST]);
    bench.advance(Duration::from_millis(200));
    assert_eq!(bench.dialed(), [FIRST, SECOND], "beside the first");
    bench.advance(Duration::from_millis(8_800));
    assert_eq!(bench.ended(client), None);
    bench.advance(Duration::from_millis(300));
    assert_eq!(bench.ended(client), Some(PeerEnd::Fin));
    bench.end(client);
    assert_eq!(bench.closed(client), Some(CloseReason::ConnectTimeout));
}

#[test]
fn an_upstream_that_is_down_is_found_by_its_check_when_it_is_up() {
    let mut bench = serve(Bench::new(), proxy().check_every(Some(Duration::from_secs(2))));
    bench.set_dial(FIRST, DialAnswer::Refuse);
    bench.set_dial(SECOND, DialAnswer::Accept);
    assert_eq!(reached(&mut bench), SECOND);
    bench.set_dial(FIRST, DialAnswer::Accept);
    bench.advance(Duration::from_millis(2_100));
    let checks = bench.dialed();
    assert_eq!(checks[2..], [FIRST, SECOND]);
    for checked in [FIRST, SECOND] {
        bench.upstream(checked);
    }
    let both = [reached(&mut bench), reached(&mut bench)];
    assert!(both.contains(&FIRST) && both.contains(&SECOND), "{both:?} before the ten seconds are over");
}

#[test]
fn a_trusted_sender_has_five_seconds_for_its_header_however_it_is_split() {
    let trusting = || proxy().accept_header_from(vec!["10.0.0.1".parse().unwrap()]);
    let mut bench = serve(Bench::new(), trusting().send_header(Some(HeaderVersion::V1)));
    bench.set_dial(FIRST, DialAnswer::Accept);
    bench.split_every(1);
    let header = "PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n";
    let client = bench.connect();
    bench.say(client, format!("{header}hello"));
    let upstream = bench.upstream(FIRST);
    assert_eq!(bench.heard(upstream), format!("{header}hello"));
    let silent = bench.connect();
    bench.say(silent, "PROXY TCP4");
    bench.advance(Duration::from_millis(4_900));
    assert_eq!(bench.ended(silent), None);
    bench.advance(Duration::from_millis(200));
    assert_eq!(bench.ended(silent), Some(PeerEnd::Fin));
    bench.end(silent);
    assert_eq!(bench.closed(silent), Some(CloseReason::Unfinished));
    bench.set_dial(SECOND, DialAnswer::Accept);
    let other = bench.connect_from("198.51.100.1:9", "10.0.0.2:9001");
    bench.say(other, header);
    let upstream = bench.upstream(SECOND);
    assert!(bench.heard(upstream).ends_with(&format!(" 9001\r\n{header}")), "from others it is payload");
}

#[test]
fn an_end_that_is_cut_off_is_passed_on_as_a_reset_and_a_clean_one_as_fin() {
    let mut bench = serve(Bench::new(), proxy());
    bench.set_dial(FIRST, DialAnswer::Accept);
    bench.set_dial(SECOND, DialAnswer::Accept);
    let client = bench.connect();
    let upstream = bench.upstream(FIRST);
    bench.end(client);
    assert_eq!((bench.ended(upstream), bench.ended(client)), (Some(PeerEnd::Fin), None), "half-closed");
    bench.say(upstream, "the answer");
    bench.end(upstream);
    assert_eq!((bench.heard(client), bench.ended(client)), ("the answer".to_string(), Some(PeerEnd::Fin)));
    let client = bench.connect();
    let upstream = bench.upstream(SECOND);
    bench.say(upstream, "half an ans");
    bench.reset(upstream);
    bench.advance(Duration::from_secs(2));
    assert_eq!((bench.heard(client), bench.ended(client)), ("half an ans".to_string(), Some(PeerEnd::Reset)));
}

#[test]
fn bytes_pass_unchanged_in_both_directions_whatever_the_seed() {
    for seed in seeds(20) {
        let mut bench = serve(Bench::seeded(seed), proxy());
        bench.set_dial(FIRST, DialAnswer::Accept);
        let client = bench.connect();
        let upstream = bench.upstream(FIRST);
        let (ask, answer) = ("ask".repeat(30_000), "answer".repeat(30_000));
        bench.together(|bench| {
            bench.say(client, &ask);
            bench.say(upstream, &answer);
            bench.stop_reading(upstream);
        });
        bench.read_again(upstream);
        bench.end(client);
        bench.end(upstream);
        assert!(bench.heard(upstream) == ask && bench.heard(client) == answer);
        let ends = [client, upstream].map(|peer| (bench.closed(peer), bench.ended(peer)));
        assert_eq!(ends, [(Some(CloseReason::Finished), Some(PeerEnd::Fin)); 2]);
    }
}
