//! What has arrived and is not taken yet.

use super::*;

#[test]
fn what_is_not_taken_comes_back_in_front() {
    let mut house = Plan::default().build(|socket, input| {
        while let Some(line) = input.take_line() {
            socket.send(line);
        }
    });
    let (peer, id) = house.guest();
    for part in ["on", "e\ntw", "o", "\nthree"] {
        house.script.feed(peer, part.as_bytes());
        house.settle();
    }
    assert_eq!(house.heard(peer), "one\ntwo\n");
    house.script.end(peer);
    house.settle();
    assert!(
        house.told().contains(&Told::End(id, b"three".to_vec())),
        "an unfinished message can be seen at the end"
    );
    assert_eq!(house.turns.table.memory, 0);
}

#[test]
fn a_long_message_in_many_reads_arrives_whole() {
    let mut house = Plan::default().build(|socket, input| {
        if let Some(line) = input.take_line() {
            socket.send(line);
        }
    });
    let (peer, _) = house.guest();
    let mut message: Vec<u8> = (0..300_000u32).map(|i| b'a' + (i % 23) as u8).collect();
    message.push(b'\n');
    for part in message.chunks(7_001) {
        house.script.feed(peer, part);
        house.settle();
    }
    assert!(house.script.heard(peer) == message);
    assert_eq!(house.turns.table.memory, 0, "nothing is kept once it is whole");
}

#[test]
fn a_line_that_comes_byte_by_byte_is_searched_once() {
    // Twelve bytes are put in front of the next read, five thousand are not: the memory must survive both.
    for length in [12, 5_000] {
        let mut seen = 0;
        let mut house = Plan::default().build(move |_, input| {
            assert_eq!(input.scanned(), seen, "what was searched in vain is searched again");
            assert!(input.take_line().is_none());
            seen = input.len();
        });
        let (peer, _) = house.guest();
        house.script.feed(peer, &vec![b'x'; length]);
        for _ in 0..20 {
            house.settle();
            house.script.feed(peer, b"y");
        }
        house.settle();
        let kept = Told::Data(house.turns.table.id(0), [vec![b'x'; length], vec![b'y'; 20]].concat());
        assert_eq!(house.told().last(), Some(&kept));
    }
}

#[test]
fn a_message_of_the_limit_is_kept_and_one_byte_more_closes() {
    let limits = SocketLimits { message: 1_000, ..no_idle() };
    let mut house = socket_limits(limits).build(|_, _| {});
    let (peer, id) = house.guest();
    house.script.feed(peer, &[b'x'; 1_000]);
    house.settle();
    assert_eq!(house.farewell(id), None);
    house.script.feed(peer, b"y");
    house.settle();
    house.script.end(peer);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::TooLong));
}

#[test]
fn a_paused_socket_is_not_read_and_gets_what_was_left_when_it_resumes() {
    let mut house = Plan::default().build(|socket, input| {
        socket.send(input.take(2));
        if !input.is_empty() {
            socket.pause();
        }
    });
    let (peer, id) = house.guest();
    house.script.feed(peer, b"abcdef");
    house.settle();
    house.script.feed(peer, b"gh");
    house.settle();
    assert_eq!(house.heard(peer), "ab");
    for expected in ["cd", "ef"] {
        Sockets::new(&mut house.turns.table).get(id).unwrap().resume();
        house.turn();
        assert!(house.heard(peer).starts_with(expected));
    }
    house.settle();
    assert_eq!(house.script.unread(peer), 0);
}
