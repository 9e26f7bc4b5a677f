//! P: reading. Two scenarios.

use std::cell::RefCell;
use std::rc::Rc;

use crate::desk::{Desk, MS, Told};

#[test]
fn p1_all_reads_land_in_one_buffer_of_the_reactor_and_are_lent_from_there() {
    let places = Rc::new(RefCell::new(Vec::new()));
    let seen = places.clone();
    let mut desk = Desk::new().on_data(move |_, input| {
        seen.borrow_mut().push(input.take_all().as_ptr() as usize);
    });
    let address = desk.listen();
    let mut peers: Vec<_> = (0..20).map(|_| desk.caller(address).0).collect();
    for round in 0..5 {
        for peer in &mut peers {
            peer.say("x");
        }
        desk.until("all are heard", |_| places.borrow().len() == 20 * (round + 1));
    }
    let places = places.borrow();
    let (least, most) = (places.iter().min().expect("some"), places.iter().max().expect("some"));
    assert!(most - least < 256 * 1024, "the places are {} bytes apart", most - least);
    assert_eq!(desk.reactor.sockets().memory(), 0, "and nobody holds anything");
}

#[test]
fn p2_pausing_stops_delivery_at_once_and_resuming_loses_nothing() {
    let heard = Rc::new(RefCell::new(Vec::new()));
    let hears = heard.clone();
    let mut desk = Desk::new().on_data(move |socket, input| {
        hears.borrow_mut().extend_from_slice(input.take(1_000));
        socket.pause();
    });
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    let all: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    peer.say(&all);
    while heard.borrow().len() < all.len() {
        let before = heard.borrow().len();
        desk.until("a piece is taken", |_| heard.borrow().len() > before);
        let now = heard.borrow().len();
        assert!(now - before <= 1_000);
        desk.turn_for(MS / 10);
        assert_eq!(heard.borrow().len(), now, "no more until it is resumed");
        desk.with_socket_of(id, |socket| socket.resume());
    }
    assert!(*heard.borrow() == all);
    assert!(desk.told(Told::Data(id)) >= 100);
}
