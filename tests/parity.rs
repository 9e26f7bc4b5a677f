//! The simulated kernel and the real one come to the same: peers follow the same random scripts against both, and after
//! every step the service and the peer must have seen the same.
#![cfg(all(target_os = "linux", feature = "testing"))]

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tidemill::testing::{Bench, Peer, PeerEnd, Tape};
use tidemill::{CloseReason, ClosedInfo, Input, Limits, Reactor, Service, Socket, Sockets};

const SCRIPTS: u64 = 1_000;
/// How long the real kernel may take for one step. It takes some microseconds.
const STEP_MAX: Duration = Duration::from_secs(10);

/// What a peer does.
#[derive(Clone, Copy, Debug)]
enum Op {
    Say(usize),
    HalfClose,
    Reset,
}

/// What the service does with a connection.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Echo,
    /// Answers at the end.
    AnswerLast,
    /// Closes after so many bytes, with an answer.
    CloseAfter(u64),
    AbortAfter(u64),
    /// Answers the first bytes with many, and ends.
    Big,
    /// Takes nothing, and closes at the end with unread bytes.
    Deaf,
    PipeToItself,
}

/// What the service and the peer have seen.
#[derive(Clone, PartialEq, Debug, Default)]
struct Seen {
    delivered: u64,
    ended: bool,
    closed: Option<CloseReason>,
    heard: Vec<u8>,
    end: Option<PeerEnd>,
}

type Shared = Rc<RefCell<(Option<Mode>, Seen)>>;

struct Parity(Shared);

impl Service for Parity {
    type Session = Mode;

    fn open(&mut self, socket: &mut Socket<'_>) -> Mode {
        let mode = self.0.borrow().0.expect("a script runs");
        if let Mode::PipeToItself = mode {
            socket.pipe(socket.id());
        }
        mode
    }

    fn data(&mut self, mode: &mut Mode, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let seen = &mut self.0.borrow_mut().1;
        let first = seen.delivered == 0;
        match *mode {
            Mode::Deaf => return,
            Mode::Echo => socket.send(input.bytes()),
            Mode::Big if first => {
                socket.send(vec![b'b'; 60_000]);
                socket.finish();
            }
            _ => {}
        }
        seen.delivered += input.take_all().len() as u64;
        match *mode {
            Mode::CloseAfter(n) if seen.delivered >= n => {
                socket.send("done");
                socket.close();
            }
            Mode::AbortAfter(n) if seen.delivered >= n => socket.abort(),
            _ => {}
        }
    }

    fn end(&mut self, mode: &mut Mode, socket: &mut Socket<'_>) {
        self.0.borrow_mut().1.ended = true;
        match mode {
            Mode::AnswerLast => socket.send("the end"),
            Mode::Deaf => return socket.close(),
            _ => {}
        }
        socket.finish();
    }

    fn closed(&mut self, _: Mode, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        self.0.borrow_mut().1.closed = Some(gone.reason);
    }
}

/// The steps of a script: what is in one step happens before the loop turns.
type Steps = Vec<Vec<Op>>;

fn draw(tape: &Tape) -> (Mode, Steps) {
    let limit = 1 + tape.below(3_000);
    let mode = match tape.below(8) {
        0 | 1 => Mode::Echo,
        2 => Mode::AnswerLast,
        3 => Mode::CloseAfter(limit),
        4 => Mode::AbortAfter(limit),
        5 => Mode::Big,
        6 => Mode::Deaf,
        _ => Mode::PipeToItself,
    };
    let mut ops: Vec<Op> = (0..tape.below(5)).map(|_| Op::Say(1 + tape.below(2_000) as usize)).collect();
    let last = if tape.one_in(3) { Op::Reset } else { Op::HalfClose };
    ops.insert(ops.len() - tape.below(ops.len() as u64 + 1).min(1) as usize, last);
    let mut steps = Steps::new();
    for op in ops {
        match steps.last_mut().filter(|_| tape.one_in(2)) {
            Some(step) => step.push(op),
            None => steps.push(vec![op]),
        }
    }
    (mode, steps)
}

/// The bytes of a step.
fn bytes(step: usize, n: usize) -> Vec<u8> {
    (0..n).map(|at| (at * 7 + step) as u8).collect()
}

/// What was seen after each step, in the simulation.
fn simulated(mode: Mode, steps: &Steps) -> Vec<Seen> {
    let shared = Shared::default();
    shared.borrow_mut().0 = Some(mode);
    let mut bench = Bench::new();
    bench.serve(Parity(Rc::clone(&shared)));
    let peer: Peer = bench.connect();
    let (mut is_reset, mut has_ended) = (false, false);
    let mut after = Vec::new();
    for (step, ops) in steps.iter().enumerate() {
        bench.together(|bench| {
            for op in ops {
                if is_reset {
                    return;
                }
                match *op {
                    Op::Say(_) if has_ended => {} // On Linux that send fails.
                    Op::Say(n) => bench.say(peer, bytes(step, n)),
                    Op::HalfClose => bench.end(peer),
                    Op::Reset => bench.reset(peer),
                }
                is_reset |= matches!(op, Op::Reset);
                has_ended |= matches!(op, Op::HalfClose);
            }
        });
        let seen = &mut shared.borrow_mut().1;
        seen.heard.extend(bench.heard_bytes(peer));
        if !is_reset {
            seen.end = seen.end.or(bench.ended(peer));
        }
        after.push(seen.clone());
    }
    after
}

/// The reactor, and its address.
struct Real {
    reactor: Reactor,
    shared: Shared,
    address: std::net::SocketAddr,
}

impl Real {
    fn new() -> Real {
        let shared = Shared::default();
        let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
        let service = reactor.add(Parity(Rc::clone(&shared)));
        let listener = reactor.listen("127.0.0.1:0", service).expect("a listener");
        let address = reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address");
        Real { reactor, shared, address }
    }

    /// Runs a script; after each step it waits until the same was seen as in the simulation.
    fn run(&mut self, mode: Mode, steps: &Steps, expected: &[Seen]) -> Result<(), String> {
        *self.shared.borrow_mut() = (Some(mode), Seen::default());
        let mut peer = Some(TcpStream::connect(self.address).expect("a connection"));
        let stream = peer.as_ref().expect("just made");
        stream.set_nonblocking(true).expect("an option");
        stream.set_nodelay(true).expect("an option");
        for (step, (ops, expected)) in steps.iter().zip(expected).enumerate() {
            ops.iter().for_each(|&op| act(op, step, &mut peer));
            let start = Instant::now();
            for tries in 0.. {
                // Most often everything is there at once, so nothing has to be waited for.
                let wait = Duration::from_millis(u64::from(tries > 20));
                self.reactor.turn(Some(wait)).expect("a turn");
                peer.iter_mut().for_each(|stream| self.read(stream));
                let seen = self.shared.borrow().1.clone();
                if seen == *expected {
                    break;
                }
                if start.elapsed() > STEP_MAX {
                    return Err(format!("step {step}: {:?}\n{:?}", brief(&seen), brief(expected)));
                }
            }
        }
        // A connection that goes on is reset, so that the next script finds none.
        peer.iter().for_each(|peer| SockRef::from(peer).set_linger(Some(Duration::ZERO)).expect("an option"));
        drop(peer);
        let start = Instant::now();
        while !self.reactor.sockets().is_empty() && start.elapsed() < STEP_MAX {
            self.reactor.turn(Some(Duration::from_millis(1))).expect("a turn");
        }
        Ok(())
    }

    fn read(&self, stream: &mut TcpStream) {
        let seen = &mut self.shared.borrow_mut().1;
        let mut buffer = [0; 16_384];
        while seen.end.is_none() {
            match stream.read(&mut buffer) {
                Ok(0) => seen.end = Some(PeerEnd::Fin),
                Ok(n) => seen.heard.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => seen.end = Some(PeerEnd::Reset),
            }
        }
    }
}

/// A peer over loopback does what a step of its script says.
fn act(op: Op, step: usize, peer: &mut Option<TcpStream>) {
    let Some(stream) = peer else { return };
    match op {
        // After an end of the service's these may fail.
        Op::Say(n) => drop(stream.write_all(&bytes(step, n))),
        Op::HalfClose => drop(stream.shutdown(Shutdown::Write)),
        Op::Reset => {
            SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).expect("an option");
            *peer = None;
        }
    }
}

/// What was seen, without the bytes themselves.
fn brief(seen: &Seen) -> (u64, bool, Option<CloseReason>, usize, Option<PeerEnd>) {
    (seen.delivered, seen.ended, seen.closed, seen.heard.len(), seen.end)
}

#[test]
fn a_thousand_scripts_come_to_the_same_on_linux_and_in_the_simulation() {
    let mut real = Real::new();
    let mut counts = [0; 3];
    for seed in tidemill::testing::seeds(SCRIPTS) {
        let (mode, steps) = draw(&Tape::seeded(seed));
        let expected = simulated(mode, &steps);
        if let Err(why) = real.run(mode, &steps, &expected) {
            panic!(
                "replay with TIDEMILL_SEED={seed}: {mode:?} {steps:?}: Linux, then the simulation, at {why}"
            );
        }
        let end = expected.last().and_then(|seen| seen.end);
        counts[usize::from(end.is_some()) + usize::from(end == Some(PeerEnd::Reset))] += 1;
    }
    // No class of outcomes is missing: open or reset by the peer, ended with FIN, reset by the service.
    let searched = counts.iter().sum::<u64>() == SCRIPTS;
    assert!(!searched || counts.iter().all(|&n| n > 20), "{counts:?}");
    println!("{counts:?} scripts ended without an end for the peer, with FIN, with a reset");
}
