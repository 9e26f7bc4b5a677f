//! Dials for another service, and sockets that the program prepares.

use std::io;
use std::os::fd::BorrowedFd;

use tidemill::{DialOptions, Key, Origin};

use super::*;

/// Sends each line of a client over a connection of the pool, and tells who it is for.
struct Front {
    pool: Key<Pool>,
    to: SocketAddr,
}

impl Service for Front {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let Some(line) = input.take_line().map(<[u8]>::to_vec) else { return };
        let options = DialOptions { tag: line.len() as u64, ..DialOptions::default() };
        let upstream = socket.dial_for(self.to, self.pool, options).expect("a slot");
        let mut upstream = socket.other(upstream).expect("it is being dialed");
        upstream.send(line);
        upstream.finish();
    }
}

/// Gives the answer of an upstream to the client in whose callback it was dialed.
struct Pool;

impl Service for Pool {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let Origin::Dialed { by: Some(client), after: None } = socket.origin() else { panic!("no client") };
        let (tag, answer) = (socket.tag(), input.take_all().to_vec());
        let mut client = socket.other(client).expect("it waits");
        client.send(format!("{tag}: {}\n", String::from_utf8_lossy(&answer)));
    }
}

#[test]
fn a_connection_dials_for_another_service_which_knows_for_whom() {
    let mut reactor = reactor();
    let echo = reactor.add(Echo::raw());
    let to = listen(&mut reactor, echo);
    let pool = reactor.add(Pool);
    let front = reactor.add(Front { pool, to });
    let to = listen(&mut reactor, front);
    while_turning(&mut reactor, || {
        assert_eq!(exchange(&mut connect(to), b"hello\n", 9), b"6: hello\n");
    });
}

fn from_a_loopback_address(socket: BorrowedFd<'_>) -> io::Result<()> {
    rustix::net::bind(socket, &SocketAddr::from(([127, 0, 0, 77], 0)))?;
    Ok(())
}

fn not_permitted(_: BorrowedFd<'_>) -> io::Result<()> {
    Err(rustix::io::Errno::PERM.into())
}

#[test]
fn a_program_prepares_the_socket_of_a_dial_before_it_connects() {
    let mut reactor = reactor();
    let recorder = Recorder::default();
    let service = reactor.add(recorder.clone());
    let there = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = there.local_addr().expect("its address");
    let options = DialOptions { prepare: Some(from_a_loopback_address), ..DialOptions::default() };
    reactor.dial_with(to, service, options).expect("a slot");
    let peer = while_turning(&mut reactor, || there.accept().expect("a peer").1);
    assert_eq!(peer.ip().to_string(), "127.0.0.77");
    let options = DialOptions { prepare: Some(not_permitted), ..DialOptions::default() };
    reactor.dial_with(to, service, options).expect("a slot");
    turn_until(&mut reactor, "both have ended", |_| recorder.closed.borrow().len() == 2);
    let reasons = recorder.closed.borrow();
    assert!(reasons.iter().any(|why| why.to_string().contains("not permitted")), "{reasons:?}");
}
