//! F: when `run` returns. One scenario.

use tidemill::services::Echo;

use crate::fixture::{Fixture, MS, Peer};

#[test]
fn f1_run_returns_when_no_listener_connection_timer_or_post_is_left() {
    let mut idle = Fixture::new();
    idle.reactor.run().expect("an empty loop ends at once");
    // A handle does not keep `run` from returning; a timer, a connection and a listener do.
    let _handle = idle.reactor.handle();
    let service = idle.service;
    idle.reactor.sockets().set_timer(service, 30 * MS, None).expect("a timer");
    let begun = std::time::Instant::now();
    idle.reactor.run().expect("it ends when the timer has expired");
    assert!(begun.elapsed() >= 30 * MS);
    let echo = idle.reactor.add(Echo::raw());
    let listener = idle.reactor.listen("127.0.0.1:0", echo).expect("a listener");
    let address = idle.address(listener);
    let client = std::thread::spawn(move || {
        let peer = Peer::connect(address);
        peer.stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
    });
    idle.until("the peer has connected and ended", |fixture| fixture.reactor.stats().closed_total() == 1);
    client.join().expect("a peer");
    assert!(idle.reactor.close_listener(listener));
    idle.reactor.run().expect("nothing is left");
}
