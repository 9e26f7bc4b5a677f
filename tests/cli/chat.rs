//! The chat, and its members at their terminals.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::peer::Peer;
use crate::server::{Server, exclusive, shared, until};
use crate::terminal::Terminal;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn arriving_lines_do_not_break_the_line_that_is_typed() {
    let _others = shared();
    let mut server = Server::start("chat");
    let mut ann = Terminal::start(80, &["connect", &server.address.to_string()]);
    ann.shows("joined");
    until("a prompt", SOON, || ann.edits_lines());
    ann.types("hel");
    ann.shows("hel");
    let mut bob = Peer::connect(server.address);
    bob.send("/nick bob\n/who\npaths: C:\\Users\\bob\n");
    ann.shows("bob: paths: C:\\Users\\bob");
    // The typed part is drawn again below what has arrived.
    until("the line again", SOON, || {
        ann.output().rsplit("C:\\Users\\bob").next().is_some_and(|rest| rest.contains("> hel"))
    });
    // Left, left, insert: the line is edited.
    ann.types("\x1b[D\x1b[DX\x1b[C\x1b[Clo\r");
    let mut told = Vec::new();
    until("the edited line", SOON, || {
        let mut bytes = [0; 512];
        let n = bob.0.read(&mut bytes).expect("the chat");
        told.extend(&bytes[..n]);
        String::from_utf8_lossy(&told).contains(": hXello\n")
    });
    ann.shows(": hXello");
    // At the end the terminal is as it was.
    server.signal(Signal::TERM);
    ann.shows("the server is shutting down");
    assert_eq!(ann.process.wait_for_exit(SOON).code(), Some(0), "{:?}", ann.output());
    assert!(!ann.edits_lines(), "the settings are restored");
    assert_eq!(server.ended(SOON).code(), Some(0));
}

#[test]
fn keys_end_the_input_or_the_program_and_signals_restore_the_terminal() {
    let _others = shared();
    let server = Server::start("chat");
    for (how, code) in [("\x04", Some(0)), ("\x03", Some(130)), ("signal", Some(143))] {
        let mut ann = Terminal::start(80, &["connect", &server.address.to_string()]);
        ann.shows("joined");
        until("a prompt", SOON, || ann.edits_lines());
        match how {
            "signal" => {
                let pid = rustix::process::Pid::from_child(&ann.process.0);
                rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
            }
            keys => ann.types(keys),
        }
        assert_eq!(ann.process.wait_for_exit(SOON).code(), code, "{how:?}: {:?}", ann.output());
        assert!(!ann.edits_lines(), "{how:?}: the settings are restored");
    }
}

#[test]
fn members_are_told_of_a_shutdown_and_not_waited_for() {
    let _others = shared();
    let mut server = Server::start("chat --drain 1h");
    let mut ann = Peer::connect(server.address);
    let joined = format!("{} joined\n", ann.0.local_addr().expect("an address"));
    assert_eq!(ann.receive(joined.len()), joined.as_bytes());
    server.signal(Signal::TERM);
    assert_eq!(ann.receive_all(), b"the server is shutting down\n");
    assert_eq!(server.ended(SOON).code(), Some(0));
}

/// Two members who read at 300 KB/s, and a third who sends 4 MB at once.
#[test]
fn one_talker_does_not_throw_out_the_others() {
    let _quiet = exclusive();
    for options in ["--rate 0", ""] {
        let mut server = Server::start(&format!("chat --drain 0 {options}"));
        let readers: Vec<_> = (0..2).map(|_| Peer::connect(server.address)).collect();
        let mut talker = Peer::connect(server.address);
        let mut own = talker.0.try_clone().expect("a second handle");
        let line = format!("{}\n", "x".repeat(99));
        let unlimited = !options.is_empty();
        let floods = thread::spawn(move || {
            let _ = talker.0.write_all(line.repeat(40_000).as_bytes());
            talker.0
        });
        let drains = thread::spawn(move || std::io::copy(&mut own, &mut std::io::sink()));
        let reading: Vec<_> = readers
            .into_iter()
            .map(|reader| {
                thread::spawn(move || {
                    let (mut total, mut buffer) = (0, vec![0; 16 << 10]);
                    let enough = if unlimited { 1_500_000 } else { 30_000 };
                    while total < enough {
                        match (&reader.0).read(&mut buffer) {
                            Ok(n @ 1..) => total += n,
                            other => panic!("{total} bytes, then {other:?}"),
                        }
                        // A slow terminal: this pause is what the test is about.
                        thread::sleep(Duration::from_millis(if unlimited { 50 } else { 1 }));
                    }
                })
            })
            .collect();
        for reader in reading {
            reader.join().expect("it stays connected");
        }
        let log = server.end();
        assert!(!log.contains("slow-reader") && !log.contains("memory="), "{log}");
        drop(floods.join());
        drop(drains.join());
    }
}
