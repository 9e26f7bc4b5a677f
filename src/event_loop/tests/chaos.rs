//! A kernel that comes short, early, late and interrupted.

use super::*;

/// Fifty peers echo random bytes through a kernel that comes short, early, late and interrupted. Nothing may be lost,
/// doubled, reordered or forgotten.
fn misbehaving_world(seed: u64) {
    let mut rng = Rng(seed);
    let limits = Limits {
        connections: 8,
        read_budget: 100 + rng.below(3_000) as usize,
        write_budget: 100 + rng.below(3_000) as usize,
        carried_budget: 1 + rng.below(10_000) as usize,
        accepts: 1 + rng.below(3) as usize,
        socket: SocketLimits { high_water: 2_000, low_water: 500, ..SocketLimits::default() },
        ..Limits::default()
    };
    let listen = ListenOptions { overflow: Overflow::Wait, ..ListenOptions::default() };
    let by_lines = rng.below(2) == 0;
    let mut house = Plan { limits, listen, ..Plan::default() }.build(move |socket, input| {
        if by_lines {
            while let Some(line) = input.take_line() {
                socket.send(line);
            }
        } else {
            socket.send(input.take_all());
        }
    });
    house.script.misbehave(seed);
    let mut live: Vec<(Peer, Vec<u8>, usize, Vec<u8>)> = Vec::new();
    for _ in 0..400 {
        if live.len() < 12 && rng.below(4) == 0 {
            live.push((house.script.connect(), Vec::new(), 0, Vec::new()));
        }
        if !live.is_empty() {
            let one = rng.below(live.len() as u64) as usize;
            let (peer, sent, stamp, heard) = &mut live[one];
            match rng.below(4) {
                0 | 1 => {
                    let n = rng.below(5_000) as usize;
                    let mut bytes: Vec<u8> = (*stamp..*stamp + n).map(|i| b'a' + (i % 26) as u8).collect();
                    bytes.push(b'\n');
                    *stamp += n;
                    house.script.feed(*peer, &bytes);
                    sent.extend(bytes);
                }
                2 => house.script.window(*peer, rng.below(4_000) as usize),
                _ => heard.extend(house.script.heard(*peer)),
            }
        }
        house.turn();
        house.script.advance(MS);
    }
    house.script.calm();
    for (peer, ..) in &live {
        house.script.window(*peer, usize::MAX);
        house.script.end(*peer);
    }
    house.settle();
    for (peer, sent, _, mut heard) in live {
        heard.extend(house.script.heard(peer));
        assert!(
            heard == sent,
            "seed {seed}: peer {peer} sent {} bytes and heard {}",
            sent.len(),
            heard.len()
        );
        assert_eq!(house.script.gone(peer), Some(Gone::Closed), "seed {seed}: peer {peer}");
    }
    assert_eq!((house.turns.table.memory, house.turns.table.connections()), (0, 0), "seed {seed}");
}

#[test]
fn nothing_is_lost_in_a_world_that_misbehaves() {
    let first = std::env::var("TIDEMILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = match first {
        Some(seed) => seed..seed + 1,
        None => 0..300,
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| misbehaving_world(seed));
        assert!(outcome.is_ok(), "replay with TIDEMILL_SEED={seed}");
    }
}
