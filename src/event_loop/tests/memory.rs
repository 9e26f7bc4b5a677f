//! One budget over all buffers.

use super::*;

#[test]
fn a_line_to_a_thousand_members_is_held_once() {
    let members: Rc<RefCell<Vec<ConnId>>> = Rc::default();
    let (joining, telling) = (members.clone(), members.clone());
    let mut house = Plan { limits: Limits { accepts: 1_001, ..Limits::default() }, ..Plan::default() }
        .build_with(
            move |socket| joining.borrow_mut().push(socket.id()),
            move |socket, input| {
                let line = Shared::from(input.take_all());
                for &id in telling.borrow().iter() {
                    socket.other(id).expect("a member").send_shared(&line);
                }
            },
        );
    let peers: Vec<Peer> = (0..1_001).map(|_| house.script.connect()).collect();
    house.settle();
    peers.iter().for_each(|&peer| house.script.window(peer, 0));
    house.script.feed(peers[0], &[b'x'; 8_000]);
    house.settle();
    assert_eq!(house.turns.table.queued(members.borrow()[5].slot), 8_000);
    let each = (house.turns.table.memory - 8_000) / 1_001;
    assert!(each < 100, "each further member costs {each} bytes");
    peers.iter().for_each(|&peer| house.script.window(peer, usize::MAX));
    house.settle();
    assert_eq!(house.turns.table.memory, 0);
    assert!(peers.iter().all(|&peer| house.script.heard(peer).len() == 8_000));
}

#[test]
fn past_the_memory_the_largest_queue_goes_first_and_only_until_it_fits() {
    let limits = Limits { memory: 300_000, socket: no_idle(), ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(|socket, input| {
        let n = input.take_all().len();
        socket.send(&vec![b'x'; n * 1_000]);
    });
    let guests: Vec<_> = [50, 100, 60].map(|n| (n, house.guest())).to_vec();
    for &(n, (peer, _)) in &guests {
        house.script.window(peer, 0);
        house.script.feed(peer, &vec![b'x'; n]);
        house.settle();
    }
    let (peer, last) = house.guest();
    house.script.window(peer, 0);
    house.script.feed(peer, &[b'x'; 62]);
    house.settle();
    assert_eq!(house.farewell(guests[1].1.1), Some(Closed::Memory));
    assert!([guests[0].1.1, guests[2].1.1, last].iter().all(|&id| house.farewell(id).is_none()));
    assert!(house.turns.table.memory <= 300_000);
}

#[test]
fn near_the_memory_limit_whoever_has_a_queue_is_not_read() {
    let limits = Limits { memory: 100_000, socket: no_idle(), ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(echo);
    let ((hog, _), (peer, _)) = (house.guest(), house.guest());
    house.script.window(hog, 0);
    house.script.feed(hog, &[b'x'; 65_536]);
    house.settle();
    house.script.window(peer, 0);
    house.script.feed(peer, &[b'x'; 16_000]);
    house.settle();
    house.script.feed(peer, &[b'x'; 1_000]);
    house.settle();
    assert_eq!(house.script.unread(peer), 1_000, "16,000 bytes are below every mark, but memory is tight");
    house.script.window(hog, usize::MAX);
    house.script.window(peer, usize::MAX);
    house.settle();
    assert_eq!((house.script.unread(peer), house.turns.table.memory), (0, 0));
}
