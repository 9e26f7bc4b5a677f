//! Setting up: errors of a type, listeners from callbacks, and ids of another reactor.

use std::error::Error;
use std::io;

use tidemill::{AccessPolicy, Address, AddressError, DialError, GroupId, ListenError, ListenerId};

use super::*;

/// `?` in a function that returns an error of the standard library.
fn converted(reactor: &mut Reactor, service: impl Into<ServiceId>) -> io::Result<ListenerId> {
    Ok(reactor.listen("127.0.0.1", service)?)
}

#[test]
fn a_listen_that_fails_has_a_type_a_kind_a_message_and_a_source() {
    let mut reactor = reactor();
    let echo = reactor.add(Echo::raw());
    let taken = listen(&mut reactor, echo);
    let error = reactor.listen(taken, echo).expect_err("it is taken");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(
        error.to_string().starts_with(&format!("cannot listen on {taken}: the address is in use")),
        "{error}"
    );
    let ListenError::System { at, source } = &error else { panic!("{error:?}") };
    assert_eq!((at, source.kind()), (&Address::from(taken), ErrorKind::AddrInUse));
    assert!(error.source().expect("the system's error").is::<io::Error>());

    let error = reactor.listen("nine", echo).expect_err("it is no address");
    assert!(matches!(error, ListenError::Address(_)));
    assert!(error.source().expect("what is wrong with it").is::<AddressError>());

    let error = converted(&mut reactor, echo).expect_err("it is no address either");
    let text = "cannot listen: \"127.0.0.1\" is not an address: a port is missing, as in :9001";
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidInput, text));
    let inner = error.get_ref().expect("the error of the crate");
    assert!(inner.is::<ListenError>(), "it can be matched behind an io::Error, too");

    let error = reactor.listen("no-such-host.invalid:80", echo).expect_err("the name is reserved");
    assert!(matches!(error, ListenError::Unresolved { .. }), "{error:?}");
    let error = reactor.sockets().listen("localhost:0", echo).expect_err("a look-up would block");
    assert!(matches!(error, ListenError::WouldBlock(_)), "{error:?}");
    reactor.shutdown(Duration::ZERO);
    let error = reactor.listen("127.0.0.1:0", echo).expect_err("it ends");
    assert!(matches!(error, ListenError::ShuttingDown), "{error:?}");
}

#[test]
fn a_reactor_has_255_listeners_at_most() {
    let mut reactor = reactor();
    let echo = reactor.add(Echo::raw());
    for _ in 0..255 {
        reactor.listen("127.0.0.1:0", echo).expect("a listener");
    }
    let error = reactor.listen("127.0.0.1:0", echo).expect_err("one more");
    assert!(matches!(error, ListenError::TooMany), "{error:?}");
}

#[test]
fn a_dial_that_cannot_start_has_a_type_and_a_message() {
    let mut reactor = Reactor::new(Limits { connections: 1, ..Limits::default() }).expect("a reactor");
    let echo = reactor.add(Echo::raw());
    let error = reactor.dial("nine", echo).expect_err("it is no address");
    assert!(matches!(error, DialError::Address(_)) && error.source().is_some(), "{error:?}");
    let error = reactor.dial(Address::Unnamed, echo).expect_err("it leads nowhere");
    assert!(matches!(error, DialError::Unnamed), "{error:?}");
    reactor.dial("127.0.0.1:9", echo).expect("a slot");
    let error = reactor.dial("127.0.0.1:9", echo).expect_err("there is one slot");
    assert!(matches!(error, DialError::Full { max: 1, .. }), "{error:?}");
    let text = "cannot dial 127.0.0.1:9: all 1 connections are in use (raise Limits::connections)";
    assert_eq!(io::Error::from(error).to_string(), text);
}

/// Everything that has an id, in two reactors that were set up in the same way.
#[test]
fn what_is_of_another_reactor_is_refused_and_never_found() {
    let mut reactors = [reactor(), reactor()];
    let [one, other] = reactors.each_mut().map(|reactor| {
        let echo = reactor.add(Echo::raw());
        let listener = reactor.listen("127.0.0.1:0", echo).expect("a listener");
        let mut sockets = reactor.sockets();
        let timer = sockets.set_timer(echo, TIMEOUT, None).expect("a timer");
        let dialed = sockets.dial("127.0.0.1:9", echo).expect("a slot");
        let group: GroupId = sockets.add_group(1_000).expect("a group");
        (echo, listener, timer, dialed, group)
    });
    assert_ne!(one.3, other.3);
    let [first, _] = &mut reactors;
    let (echo, listener, timer, dialed, group) = other;
    assert!(matches!(first.listen("127.0.0.1:0", echo), Err(ListenError::OtherReactor)));
    assert!(matches!(first.dial("127.0.0.1:9", echo), Err(DialError::OtherReactor { .. })));
    first.set_access_policy(echo, AccessPolicy { connections: Some(1), ..AccessPolicy::default() });
    assert!(first.rules(one.0).is_none() && first.rules(echo).is_none(), "it has set no policy");
    assert_eq!((first.local_addr(listener), first.close_listener(listener)), (None, false));
    let mut sockets = first.sockets();
    assert!(sockets.set_timer(echo, TIMEOUT, None).is_err());
    assert!(sockets.get(dialed).is_none() && !sockets.cancel_dial(dialed));
    assert!(!sockets.cancel_timer(timer) && sockets.cancel_timer(one.2));
    assert_eq!((sockets.count(echo), sockets.count(one.0)), (0, 1));
    assert!(sockets.key::<Echo>(echo.id()).is_none() && sockets.key::<Echo>(one.0.id()).is_some());
    assert!(sockets.later(echo, |_, _| ()).is_err());
    assert!(first.handle().post_to(echo, |_, _| ()).is_err());
    assert!(first.local_addr(one.1).is_some(), "its own listener is still there");
    // A group of another reactor would be another group here.
    let limits = SocketLimits { group: Some(group), ..SocketLimits::default() };
    let added =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| first.add_with(Echo::raw(), limits)));
    assert!(added.is_err());
}

/// Opens a port for each line and says which; a connection to it is told the port it has come to, and closes it.
struct Passive {
    control: Option<ListenerId>,
}

impl Service for Passive {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        let own = socket.listener().expect("it was accepted");
        if *self.control.get_or_insert(own) != own {
            let address = socket.all().local_addr(own).expect("it is open");
            socket.send(format!("{}\n", address.port().expect("a port")).as_bytes());
            assert!(socket.all().close_listener(own));
            socket.finish();
        }
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let own = socket.service();
        while input.take_line().is_some() {
            let listener = socket.all().listen("127.0.0.1:0", own).expect("a listener");
            let address = socket.all().local_addr(listener).expect("it is bound");
            socket.send(format!("{}\n", address.port().expect("a port")).as_bytes());
        }
    }
}

#[test]
fn a_callback_opens_a_port_and_says_its_number_in_the_same_answer() {
    let mut reactor = reactor();
    let passive = reactor.add(Passive { control: None });
    let to = listen(&mut reactor, passive);
    while_turning(&mut reactor, || {
        let mut control = connect(to);
        // More than a connection's byte can number, one after another.
        for _ in 0..300 {
            control.write_all(b"PASV\n").expect("it takes what we say");
            let mut port = String::new();
            while !port.ends_with('\n') {
                let mut byte = [0];
                control.read_exact(&mut byte).expect("an answer");
                port.push(byte[0].into());
            }
            let mut seen = String::new();
            let mut data = connect(SocketAddr::new(to.ip(), port.trim().parse().expect("a port")));
            data.read_to_string(&mut seen).expect("an answer");
            assert_eq!(seen, port);
        }
        drop(control);
    });
    assert_eq!(reactor.stats().accepted, 301);
}
