//! Tiny worlds, of which every schedule is run: two connections of four steps each, in any order, and after each step
//! the loop turns or does not.

use super::peers::Op;
use super::*;

/// What each peer does after it has connected.
type Steps = [Op; 3];

/// Pairs of peers: a clean end beside a reset, a full window beside a message in two parts, two that end.
const PAIRS: [[Steps; 2]; 3] = [
    [[Op::Say(5), Op::Say(3), Op::HalfClose], [Op::Say(7), Op::Read(0), Op::Reset]],
    [[Op::Read(2), Op::Say(9), Op::ReadAll], [Op::Say(1), Op::Say(6), Op::HalfClose]],
    [[Op::Say(4), Op::HalfClose, Op::Read(1)], [Op::HalfClose, Op::ReadAll, Op::Reset]],
];

/// The orders of two times four steps, and whether a turn follows each of the eight.
const SCHEDULES: u64 = 70 * (1 << 8);

struct Echo;

impl Service for Echo {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, (): &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        socket.send(input.take_all());
    }
}

struct Tiny<'t> {
    event_loop: EventLoop<Sim>,
    script: Script,
    tape: &'t Tape,
    peers: [Option<PeerId>; 2],
    listen: Address,
}

impl Tiny<'_> {
    fn step(&mut self, which: usize, op: Option<Op>) {
        let Some(peer) = self.peers[which] else {
            self.peers[which] = Some(self.script.connect_to(&self.listen, self.script.next_address()));
            return;
        };
        match op {
            Some(Op::Say(n)) => self.script.feed(peer, &vec![b'0' + which as u8; n]),
            Some(Op::HalfClose) => self.script.end(peer),
            Some(Op::Reset) => self.script.reset(peer),
            Some(Op::Read(n)) => self.script.window(peer, n),
            Some(Op::ReadAll) => self.script.window(peer, usize::MAX),
            Some(Op::Urgent | Op::Wait(_) | Op::Handshake) | None => {}
        }
    }

    fn rest(&mut self) {
        self.event_loop.turn_until_quiet(&self.script);
        self.event_loop.check_at_rest();
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let choices = in_hexadecimal(&self.tape.bytes());
            let steps = self.script.with_trace(|trace| trace.tail());
            tell(&format!("replay with TIDEMILL_TAPE={choices}; {steps}\n"));
        }
    }
}

/// One schedule.
fn run(tape: &Tape, profile: Profile, scripts: &[Steps; 2]) {
    let (sim, script) = Sim::new();
    script.set_profile(profile);
    let socket = SocketLimits { high_water: 4, low_water: 1, ..SocketLimits::default() };
    // Budgets below the length of a message: what they cut off is announced by no event.
    let limits = Limits { connections: 2, read_budget: 4, write_budget: 4, socket, ..Limits::default() };
    let mut event_loop = EventLoop::new(sim, limits).unwrap();
    let service = event_loop.add(Echo, None);
    let listen =
        if profile == Profile::Strict { Address::from(address()) } else { "unix:/x".parse().unwrap() };
    event_loop.listen(&listen, service, &ListenOptions::default()).unwrap();
    let mut world = Tiny { event_loop, script, tape, peers: [None; 2], listen };
    let mut taken = [0, 0];
    while taken != [4, 4] {
        let which = match taken {
            [4, _] => 1,
            [_, 4] => 0,
            _ => tape.below(2) as usize,
        };
        let op = scripts[which].get(usize::wrapping_sub(taken[which], 1)).copied();
        world.step(which, op);
        taken[which] += 1;
        if tape.below(2) == 1 {
            world.event_loop.turn_and_check();
        }
    }
    world.rest();
    for (which, steps) in scripts.iter().enumerate() {
        let peer = world.peers[which].expect("it has connected");
        world.script.window(peer, usize::MAX);
        world.rest();
        let is_reset = steps.iter().any(|op| matches!(op, Op::Reset));
        let said: usize = steps.iter().map(|op| if let Op::Say(n) = op { *n } else { 0 }).sum();
        let heard = world.script.received(peer);
        assert!(heard.iter().all(|&byte| byte == b'0' + which as u8), "bytes of the other connection");
        assert!(heard.len() == said || is_reset, "{} of {said} bytes came back", heard.len());
        let ends = steps.iter().any(|op| matches!(op, Op::HalfClose)) && !is_reset;
        assert_eq!(world.script.received_end(peer), ends || (is_reset && world.script.received_end(peer)));
        assert_eq!(
            world.script.released(peer).is_some(),
            ends || is_reset,
            "open for as long as its peer is"
        );
    }
}

#[test]
fn every_schedule_of_two_connections_with_eight_steps_keeps_the_oracles() {
    for profile in [Profile::Strict, Profile::Kqueue, Profile::Contract] {
        for scripts in &PAIRS {
            let count = match tape_of_environment() {
                Some(tape) => return run(&tape, profile, scripts),
                None => Tape::each(|tape| run(tape, profile, scripts)),
            };
            println!("{profile:?}: {count} schedules of {scripts:?}");
            assert_eq!(count, SCHEDULES);
        }
    }
}
