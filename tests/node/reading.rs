//! P: reading. Two scenarios.

use std::cell::RefCell;
use std::rc::Rc;

use crate::fixture::{Event, Fixture, MS};

#[test]
fn p1_all_reads_land_in_one_buffer_of_the_reactor_and_are_lent_from_there() {
    let places = Rc::new(RefCell::new(Vec::new()));
    let seen = places.clone();
    let mut fixture = Fixture::new().on_data(move |_, input| {
        seen.borrow_mut().push(input.take_all().as_ptr() as usize);
    });
    let address = fixture.listen();
    let mut peers: Vec<_> = (0..20).map(|_| fixture.connect(address).0).collect();
    for round in 0..5 {
        for peer in &mut peers {
            peer.send("x");
        }
        fixture.until("all arrive", |_| places.borrow().len() == 20 * (round + 1));
    }
    let places = places.borrow();
    let (least, max) = (places.iter().min().expect("some"), places.iter().max().expect("some"));
    assert!(max - least < 256 * 1024, "the places are {} bytes apart", max - least);
    assert_eq!(fixture.reactor.sockets().memory(), 0, "and no buffer is held");
}

#[test]
fn p2_pausing_stops_delivery_at_once_and_resuming_loses_nothing() {
    let received = Rc::new(RefCell::new(Vec::new()));
    let hears = received.clone();
    let mut fixture = Fixture::new().on_data(move |socket, input| {
        hears.borrow_mut().extend_from_slice(input.take(1_000));
        socket.pause();
    });
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    let all: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    peer.send(&all);
    while received.borrow().len() < all.len() {
        let before = received.borrow().len();
        fixture.until("a piece is taken", |_| received.borrow().len() > before);
        let now = received.borrow().len();
        assert!(now - before <= 1_000);
        fixture.turn_for(MS / 10);
        assert_eq!(received.borrow().len(), now, "no more until it is resumed");
        fixture.with_socket_of(id, |socket| socket.resume());
    }
    assert!(*received.borrow() == all);
    assert!(fixture.count(Event::Data(id)) >= 100);
}
