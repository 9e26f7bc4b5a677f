//! Unread input: what is kept, delivered again, and charged.

use super::*;

#[test]
fn unread_input_is_delivered_again_before_new_input() {
    let mut test = Setup::default().build(|socket, input| {
        while let Some(line) = input.take_line() {
            socket.send(line);
        }
    });
    let (peer, id) = test.accept();
    for part in ["on", "e\ntw", "o", "\nthree"] {
        test.script.feed(peer, part.as_bytes());
        test.turn_until_quiet();
    }
    assert_eq!(test.received(peer), "one\ntwo\n");
    test.script.end(peer);
    test.turn_until_quiet();
    assert!(
        test.events().contains(&Event::End(id, b"three".to_vec())),
        "an unfinished message can be seen at the end"
    );
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn a_long_message_in_many_reads_arrives_whole() {
    let mut test = Setup::default().build(|socket, input| {
        if let Some(line) = input.take_line() {
            socket.send(line);
        }
    });
    let (peer, _) = test.accept();
    let mut message: Vec<u8> = (0..300_000u32).map(|i| b'a' + (i % 23) as u8).collect();
    message.push(b'\n');
    for part in message.chunks(7_001) {
        test.script.feed(peer, part);
        test.turn_until_quiet();
    }
    assert!(test.script.received(peer) == message);
    assert_eq!(test.event_loop.table.cx.memory, 0, "nothing is kept once it is whole");
}

#[test]
fn a_line_that_comes_byte_by_byte_is_searched_once() {
    // Twelve bytes are copied in front of the next read, five thousand stay in the inbox: both must be charged
    // correctly.
    for length in [12, 5_000] {
        let mut seen = 0;
        let mut test = Setup::default().build(move |_, input| {
            assert_eq!(input.scanned(), seen, "what was searched in vain is searched again");
            assert!(input.take_line().is_none());
            seen = input.len();
        });
        let (peer, _) = test.accept();
        test.script.feed(peer, &vec![b'x'; length]);
        for _ in 0..20 {
            test.turn_until_quiet();
            test.script.feed(peer, b"y");
        }
        test.turn_until_quiet();
        let kept =
            Event::Data(test.event_loop.table.slots[0].id, [vec![b'x'; length], vec![b'y'; 20]].concat());
        assert_eq!(test.events().last(), Some(&kept));
    }
}

#[test]
pub(super) fn a_message_of_the_limit_is_kept_and_one_byte_more_closes() {
    let limits = SocketLimits { message: 1_000, ..no_idle() };
    let mut test = socket_limits(limits).build(|_, _| {});
    let (peer, id) = test.accept();
    test.script.feed(peer, &[b'x'; 1_000]);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), None);
    test.script.feed(peer, b"y");
    test.turn_until_quiet();
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::TooLong));
}

#[test]
pub(super) fn a_paused_socket_is_not_read_and_gets_what_was_left_when_it_resumes() {
    let mut test = Setup::default().build(|socket, input| {
        socket.send(input.take(2));
        if !input.is_empty() {
            socket.pause();
        }
    });
    let (peer, id) = test.accept();
    test.script.feed(peer, b"abcdef");
    test.turn_until_quiet();
    test.script.feed(peer, b"gh");
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "ab");
    for expected in ["cd", "ef"] {
        Sockets::new(&mut test.event_loop.table).get(id).unwrap().resume();
        test.turn();
        assert!(test.received(peer).starts_with(expected));
    }
    test.turn_until_quiet();
    assert_eq!(test.script.unread(peer), 0);
}
