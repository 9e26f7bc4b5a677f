//! Connected streams that were made elsewhere.

use std::os::unix::net::UnixStream;

use tidemill::{Address, AdoptError, Origin};

use super::*;

/// Greets with the origin and the peer, then echoes.
#[derive(Clone, Default)]
struct Greeter(Rc<RefCell<Vec<Origin>>>);

impl Service for Greeter {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        self.0.borrow_mut().push(socket.origin());
        assert_eq!(socket.listener(), None);
        let peer = socket.peer_addr();
        socket.send(format!("{peer}\n"));
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        socket.send(input.take_all());
    }
}

#[test]
fn one_end_of_a_socket_pair_is_a_connection_like_any_other() {
    let mut reactor = reactor();
    let greeter = Greeter::default();
    let service = reactor.add(greeter.clone());
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    // Bytes that arrived before it was adopted raise no event of their own.
    theirs.write_all(b"early ").expect("room");
    let id = reactor.adopt_stream(ours, service).expect("a slot");
    reactor.sockets().get(id).expect("it is there at once").send(b"first\n");
    let seen = while_turning(&mut reactor, move || {
        theirs.write_all(b"late").expect("room");
        theirs.shutdown(std::net::Shutdown::Write).expect("an end");
        let mut seen = String::new();
        theirs.read_to_string(&mut seen).expect("an answer");
        seen
    });
    assert_eq!(seen, "first\nunix:\nearly late");
    assert_eq!(*greeter.0.borrow(), [Origin::Adopted]);
    turn_until(&mut reactor, "it has ended", |reactor| {
        reactor.stats().closed_count(CloseReason::Finished) == 1
    });
    assert_eq!((reactor.stats().adopted, reactor.sockets().len()), (1, 0));
}

#[test]
fn a_post_hands_an_accepted_stream_to_another_reactor() {
    let mut reactor = reactor();
    let service = reactor.add(Greeter::default());
    let handle = reactor.handle();
    let acceptor = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = acceptor.local_addr().expect("its address");
    let seen = while_turning(&mut reactor, move || {
        let mut client = connect(to);
        let (stream, peer) = acceptor.accept().expect("a peer");
        let posted = handle.post_to(service, move |_, sockets| {
            let own = tidemill::ServiceId::from(service);
            let id = sockets.adopt_stream(stream, own).expect("a slot");
            let socket = sockets.get(id).expect("it is there at once");
            assert_eq!((socket.peer_addr(), socket.local_addr()), (peer.into(), Some(Address::from(to))));
        });
        posted.expect("a loop");
        let mut seen = vec![0; format!("{peer}\n").len()];
        client.read_exact(&mut seen).expect("a greeting");
        assert_eq!(exchange(&mut client, b"hello", 5), b"hello");
        (seen, peer)
    });
    assert_eq!(seen.0, format!("{}\n", seen.1).as_bytes());
}

#[test]
fn adopted_streams_count_against_the_limit_and_must_be_connected() {
    let mut reactor = Reactor::new(Limits { connections: 1, ..Limits::default() }).expect("a reactor");
    let echo = reactor.add(Echo::raw());
    let foreign = self::reactor().add(Echo::raw());
    let pair = || UnixStream::pair().expect("a pair").0;
    let error = reactor.adopt_stream(pair(), foreign).expect_err("another reactor's");
    assert!(matches!(error, AdoptError::OtherReactor), "{error:?}");
    let unconnected =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let error = reactor.adopt_stream(TcpStream::from(unconnected), echo).expect_err("no peer");
    assert_eq!(error.to_string(), "cannot adopt a connection: its socket is not connected");
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let id = reactor.adopt_stream(ours, echo).expect("a slot");
    let error = reactor.adopt_stream(pair(), echo).expect_err("one is the maximum");
    assert!(matches!(error, AdoptError::Full { max: 1 }), "{error:?}");
    // Closed before its service has seen it: its slot is free again, and its service never sees it.
    reactor.sockets().get(id).expect("it is there").close();
    turn_until(&mut reactor, "it has gone", |reactor| reactor.sockets().is_empty());
    assert_eq!(theirs.read(&mut [0]).expect("an end"), 0);
}

#[cfg(feature = "tls")]
#[test]
fn an_adopted_stream_can_be_the_client_of_tls() {
    // Without a certificate there is no session, but the first bytes tell the side: a client speaks first.
    use tidemill::AdoptedStream;
    use tidemill::tls::{Client, ClientOptions};
    struct Starter(Client);
    impl Service for Starter {
        type Session = ();
        fn open(&mut self, socket: &mut Socket<'_>) {
            socket.start_filter(self.0.filter_config().for_peer("a.example:443".parse().expect("a name")));
        }
        fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}
    }
    let mut reactor = reactor();
    let client = Client::new(ClientOptions::default()).expect("a client");
    let service = reactor.add(Starter(client));
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    reactor.adopt_stream(AdoptedStream::from(ours).as_client(), service).expect("a slot");
    let first = while_turning(&mut reactor, move || {
        let mut first = [0];
        theirs.read_exact(&mut first).expect("a ClientHello");
        first
    });
    assert_eq!(first, [22], "a handshake record");
}
