//! Files that are sent: on the simulated kernel they are read piece by piece, as under TLS.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;

use super::*;

/// A file without a name.
fn file(bytes: &[u8]) -> File {
    thread_local!(static COUNT: Cell<u32> = const { Cell::new(0) });
    let number = COUNT.replace(COUNT.get() + 1);
    let thread = std::thread::current().id();
    let path = std::env::temp_dir().join(format!("tidemill-{}-{thread:?}-{number}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// Answers each byte with a head, a file of so many bytes and a tail; `asked` of them are asked for.
fn sends(length: usize, asked: u64) -> TestLoop {
    Setup::default().build(move |socket, input| {
        for _ in input.take_all() {
            socket.send("head");
            socket.send_file(file(&pattern(length)), 0..asked);
            socket.send("tail");
        }
    })
}

#[test]
fn a_file_comes_in_the_order_of_the_sends_whatever_its_size() {
    for length in [0, 1, 64 * 1024, 64 * 1024 + 1, 300_000] {
        let mut test = sends(length, length as u64);
        let (peer, id) = test.accept();
        test.script.feed(peer, b"12");
        test.turn_until_quiet();
        let one = [&b"head"[..], &pattern(length), b"tail"].concat();
        assert_eq!(test.script.received(peer), [&one[..], &one].concat(), "{length}");
        assert_eq!((test.queued(id), test.event_loop.table.cx.memory), (0, 0));
    }
}

#[test]
fn a_queued_file_takes_no_memory_and_holds_the_next_request() {
    let mut test = sends(3_000_000, 3_000_000);
    let (peer, id) = test.accept();
    test.script.window(peer, 10_000);
    test.script.feed(peer, b"1");
    test.turn_until_quiet();
    test.script.feed(peer, b"2");
    test.turn_until_quiet();
    assert_eq!(test.queued(id), 3_000_008 - 10_000, "one file is queued");
    assert_eq!(test.script.unread(peer), 1, "the second request waits");
    let memory = test.event_loop.table.cx.memory;
    assert!(memory < 2 * 64 * 1024, "{memory} bytes for a file that is not read yet");
    test.script.window(peer, usize::MAX);
    test.turn_until_quiet();
    assert_eq!(test.script.received(peer).len(), 2 * 3_000_008, "both came");
    assert!(test.events().contains(&Event::Drained(id)));
}

#[test]
fn one_turn_writes_one_budget_of_a_file() {
    let mut test = sends(1_000_000, 1_000_000);
    let (peer, _) = test.accept();
    test.script.feed(peer, b"1");
    test.turn();
    let first = test.script.received(peer).len();
    assert!((4..=64 * 1024 + 4).contains(&first), "{first} bytes in one turn");
    test.turn_until_quiet();
    assert_eq!(first + test.script.received(peer).len(), 1_000_008);
}

#[test]
fn a_file_that_is_shorter_than_its_range_resets_the_connection() {
    for (length, asked) in [(99, 100), (100_000, 100_001), (0, 1), (0, 200_000)] {
        let mut test = sends(length, asked);
        let (peer, id) = test.accept();
        test.script.feed(peer, b"1");
        test.turn_until_quiet();
        let reason = test.close_reason(id).expect("it is closed");
        assert_eq!(reason.to_string(), "a file to be sent is shorter than its range");
        assert_eq!(test.script.released(peer), Some(Released::Reset), "{length} of {asked}");
        assert_eq!(test.event_loop.table.cx.memory, 0);
    }
}

#[test]
fn a_close_right_after_a_file_waits_for_the_file() {
    let mut test = Setup::default().build(|socket, input| {
        input.take_all();
        socket.send_file(file(&pattern(500_000)), 100..400_000);
        socket.close();
    });
    let (peer, id) = test.accept();
    test.script.window(peer, 1_000);
    test.script.feed(peer, b"1");
    test.turn_until_quiet();
    assert!(!test.script.received_end(peer));
    test.script.window(peer, usize::MAX);
    test.turn_until_quiet();
    assert_eq!(test.script.received(peer), pattern(500_000)[100..400_000]);
    assert!(test.script.received_end(peer));
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Local));
}

#[test]
fn a_slow_download_is_no_slow_reader_when_more_is_sent_behind_it() {
    let mut test = sends(3_000_000, 3_000_000);
    let (peer, id) = test.accept();
    test.script.window(peer, 10_000);
    test.script.feed(peer, b"1");
    test.turn_until_quiet();
    let (connection, cx) = test.event_loop.table.get(id).expect("it is open");
    connection.send(b"a line of a room", cx);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), None, "what is in a file does not count for `queue`");
}

#[test]
fn a_file_that_turns_out_short_after_close_resets_the_connection_too() {
    let mut test = Setup::default().build(|socket, input| {
        input.take_all();
        socket.send_file(file(&pattern(100_000)), 0..200_000);
        socket.close();
    });
    let (peer, id) = test.accept();
    test.script.feed(peer, b"1");
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id).map(|reason| reason.word()), Some("file"));
    assert_eq!(test.script.released(peer), Some(Released::Reset), "no end that vouches for half a file");
}
