//! Filters on a kernel that injects faults.

use super::*;

/// Encrypted echoes, half of them through a pipe, on a kernel with short, early, late and interrupted calls.
pub(in crate::event_loop::tests) fn run_with_faults(tape: &Tape) {
    let limits = Limits {
        read_budget: 100 + tape.below(30_000) as usize,
        write_budget: 100 + tape.below(30_000) as usize,
        handshakes: 1 + tape.below(3) as usize,
        socket: SocketLimits { high_water: 5_000, low_water: 500, handshake: None, ..no_idle() },
        ..Limits::default()
    };
    let listen = ListenOptions { filter: Some(server()), ..ListenOptions::default() };
    let mut test = Setup { limits, listen, ..Setup::default() }.build_with(
        |socket| {
            let own = socket.id();
            if own.slot % 2 == 0 {
                assert!(socket.pipe(own), "joined with itself, it is an echo");
            }
        },
        echo,
    );
    test.script.inject_faults(tape);
    let mut live = Vec::new();
    for _ in 0..8 {
        live.push((test.script.connect(), b"HELLO\nTHANKS\n".to_vec(), Vec::new(), Vec::new()));
    }
    for _ in 0..600 {
        let one = tape.below(live.len() as u64) as usize;
        let (peer, waiting, sent, received) = &mut live[one];
        match tape.below(5) {
            0 => {
                let plain: Vec<u8> = (0..tape.below(9_000)).map(|_| tape.below(256) as u8).collect();
                waiting.extend(record(&plain));
                sent.extend(plain);
            }
            1 | 2 => {
                let n = (tape.below(12_000) as usize).min(waiting.len());
                test.script.feed(*peer, &waiting.drain(..n).collect::<Vec<_>>());
            }
            3 => test.script.window(*peer, tape.below(9_000) as usize),
            _ => received.extend(test.script.received(*peer)),
        }
        test.turn();
        test.script.advance(MS);
    }
    test.script.stop_faults();
    for (peer, waiting, ..) in &mut live {
        test.script.window(*peer, usize::MAX);
        test.script.feed(*peer, waiting);
        test.script.feed(*peer, END);
    }
    test.turn_until_quiet();
    for (peer, _, sent, mut received) in live {
        received.extend(test.script.received(peer));
        let (plain, _) = parse_records(received.strip_prefix(b"WELCOME\n").expect("a greeting"));
        assert!(plain == sent, "{peer} sent {} bytes and heard {}", sent.len(), plain.len());
        assert!(received.ends_with(END));
    }
    assert_eq!((test.event_loop.table.cx.memory, test.event_loop.table.connections()), (0, 0));
}

#[test]
fn no_filtered_data_is_lost_under_injected_faults() {
    each_seed(200, run_with_faults);
}

#[test]
fn an_exact_batch_stops_within_a_slice() {
    let mut slices = WriteBatch::with_exact_budget(5);
    assert!(slices.push(b"abc"));
    assert!(!slices.push(b"defgh"));
    let all: Vec<u8> = slices.slices().iter().flat_map(|slice| slice.to_vec()).collect();
    assert_eq!((all.as_slice(), slices.len()), (&b"abcde"[..], 5));
}
