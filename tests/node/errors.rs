//! E: error messages. Six scenarios.

use std::io::ErrorKind;
use std::net::TcpListener;

use tidemill::{Attempt, CloseReason, DialOptions};

use crate::fixture::{Fixture, MS, closed_port};

#[test]
fn e1_an_error_of_listen_names_the_address_the_reason_and_a_remedy() {
    let mut fixture = Fixture::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let error = fixture.reactor.listen(address, fixture.service).expect_err("it is taken");
    let text = format!(
        "cannot listen on {address}: the address is in use (another process listens there; port 0 picks a free one)"
    );
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::AddrInUse, text));
    let error = fixture.reactor.listen("192.0.2.1:80", fixture.service).expect_err("it is not ours");
    assert_eq!(error.to_string(), "cannot listen on 192.0.2.1:80: this machine has no such address");
}

#[test]
fn e2_an_error_of_listen_on_a_path_names_the_reason() {
    let mut fixture = Fixture::new();
    let folder = std::env::temp_dir().join(format!("tidemill-e2-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("file");
    std::fs::write(&file, "text").expect("a file");
    let mut text = |path: &std::path::Path| {
        let error = fixture.reactor.listen(path, fixture.service).expect_err("it cannot be");
        error.to_string().replace(&*folder.to_string_lossy(), "DIR")
    };
    assert_eq!(
        text(&file),
        "cannot listen on unix:DIR/file: a file that is not a socket exists at this path"
    );
    assert_eq!(
        text(&folder.join("no/where")),
        "cannot listen on unix:DIR/no/where: the directory does not exist"
    );
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "text");
    std::fs::remove_dir_all(&folder).expect("it is ours");
}

#[test]
fn e3_an_error_of_dial_names_the_address_and_the_reason_of_the_system() {
    let mut fixture = Fixture::new();
    let id = fixture.dial(closed_port());
    assert!(matches!(fixture.until_closed(id), CloseReason::Unreachable(_)));
    assert_eq!(fixture.dial_error(id), "cannot connect to 127.77.0.1:1: connection refused");
    let failure = fixture.closed_info(id).dial_error.expect("a failure");
    let [(tried, Attempt::Failed(error))] = failure.attempts() else { panic!("{failure:?}") };
    assert_eq!(
        (tried.inet(), std::io::Error::from(*error).kind()),
        (Some(closed_port()), ErrorKind::ConnectionRefused)
    );
}

#[test]
fn e4_an_error_of_the_local_address_is_reported_as_such() {
    let mut fixture = Fixture::new();
    let target = Fixture::new().listen();
    let options =
        DialOptions { local: Some("192.0.2.1:0".parse().expect("an address")), ..DialOptions::default() };
    let id = fixture.reactor.dial_with(target, fixture.service, options).expect("a slot");
    fixture.until_closed(id);
    assert_eq!(
        fixture.dial_error(id),
        format!("cannot connect to {target}: cannot assign requested address")
    );
}

#[test]
fn e5_an_error_is_reported_once() {
    let mut fixture = Fixture::new().on_open(|socket| {
        socket.send(b"never received");
        socket.finish();
    });
    let id = fixture.dial(closed_port());
    fixture.until_closed(id);
    fixture.turn_for(30 * MS);
    assert_eq!((fixture.close_reasons(id).len(), fixture.events().len()), (1, 2));
}

#[test]
fn e6_two_hundred_and_fifty_refused_connects_leave_nothing_behind() {
    let mut fixture = Fixture::new();
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("ours").count();
    let first = fixture.dial(closed_port());
    fixture.until_closed(first);
    let before = descriptors();
    for _ in 0..5 {
        let ids: Vec<_> = (0..50).map(|_| fixture.dial(closed_port())).collect();
        fixture.until("all are refused", |fixture| ids.iter().all(|&id| fixture.closed(id).is_some()));
    }
    assert_eq!(fixture.reactor.sockets().len(), 0);
    assert!(fixture.reactor.next_deadline().is_none(), "nothing is left to wait for");
    // Other tests of this process open and close descriptors meanwhile.
    assert!(descriptors() < before + 200, "{} descriptors, {before} before", descriptors());
}
