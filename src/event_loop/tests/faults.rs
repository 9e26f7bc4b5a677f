//! A kernel with short reads and writes, spurious and late events, and interrupted calls.

use super::*;

/// Fifty peers echo random bytes through a kernel that injects these faults. No byte may be lost, doubled or reordered,
/// and no connection may be forgotten.
pub(super) fn run_with_faults(tape: &Tape) {
    let limits = Limits {
        connections: 8,
        read_budget: 100 + tape.below(3_000) as usize,
        write_budget: 100 + tape.below(3_000) as usize,
        carried_over_budget: 1 + tape.below(10_000) as usize,
        accepts_per_turn: 1 + tape.below(3) as usize,
        socket: SocketLimits { high_water: 2_000, low_water: 500, ..SocketLimits::default() },
        ..Limits::default()
    };
    let listen = ListenOptions { overflow: Overflow::Wait, ..ListenOptions::default() };
    let by_lines = tape.below(2) == 0;
    let mut test = Setup { limits, listen, ..Setup::default() }.build(move |socket, input| {
        if by_lines {
            while let Some(line) = input.take_line() {
                socket.send(line);
            }
        } else {
            socket.send(input.take_all());
        }
    });
    test.script.inject_faults(tape);
    let mut live: Vec<(PeerId, Vec<u8>, usize, Vec<u8>)> = Vec::new();
    for _ in 0..400 {
        if live.len() < 12 && tape.below(4) == 0 {
            live.push((test.script.connect(), Vec::new(), 0, Vec::new()));
        }
        if !live.is_empty() {
            let one = tape.below(live.len() as u64) as usize;
            let (peer, sent, stamp, received) = &mut live[one];
            match tape.below(4) {
                0 | 1 => {
                    let n = tape.below(5_000) as usize;
                    let mut bytes: Vec<u8> = (*stamp..*stamp + n).map(|i| b'a' + (i % 26) as u8).collect();
                    bytes.push(b'\n');
                    *stamp += n;
                    test.script.feed(*peer, &bytes);
                    sent.extend(bytes);
                }
                2 => test.script.window(*peer, tape.below(4_000) as usize),
                _ => received.extend(test.script.received(*peer)),
            }
        }
        test.turn();
        test.script.advance(MS);
    }
    test.script.stop_faults();
    for (peer, ..) in &live {
        test.script.window(*peer, usize::MAX);
        test.script.end(*peer);
    }
    test.turn_until_quiet();
    for (peer, sent, _, mut received) in live {
        received.extend(test.script.received(peer));
        assert!(received == sent, "peer {peer} sent {} bytes and heard {}", sent.len(), received.len());
        assert_eq!(test.script.released(peer), Some(Released::Closed), "peer {peer}");
    }
    assert_eq!((test.event_loop.table.cx.memory, test.event_loop.table.connections()), (0, 0));
}

#[test]
fn nothing_is_lost_under_injected_faults() {
    each_seed(300, run_with_faults);
}
