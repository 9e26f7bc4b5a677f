use std::io;

use tidemill::{Address, ClosedInfo, ConnId, Input, Key, Limits, Reactor, Service, Socket, Sockets};

/// Counts the lines of its peers.
#[derive(Default)]
pub struct Counter {
    lines: u64,
    members: Vec<ConnId>,
}

impl Service for Counter {
    type Session = u64; // The lines of this connection.

    fn open(&mut self, socket: &mut Socket<'_>) -> u64 {
        self.members.push(socket.id());
        0
    }

    fn data(&mut self, own: &mut u64, _: &mut Socket<'_>, input: &mut Input<'_>) {
        while input.take_line().is_some() {
            *own += 1;
            self.lines += 1;
        }
    }

    fn closed(&mut self, _: u64, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        self.members.retain(|&id| id != gone.id);
    }
}

/// Answers `total` and `reset` on another port, by asking the counter.
pub struct Admin {
    counter: Key<Counter>,
}

impl Service for Admin {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(line) = input.take_line() {
            let (resets, asker) = (line.trim_ascii() == b"reset", socket.id());
            // Runs in this turn, when no callback runs: with the other service, and with all its sessions.
            let asked = socket.all().later(self.counter, move |counter, sockets| {
                let answer = format!("{} lines\n", counter.lines);
                if resets {
                    counter.lines = 0;
                    for &id in &counter.members {
                        if let Some((own, _)) = sockets.session(id) {
                            *own = 0;
                        }
                    }
                }
                if let Some(mut asker) = sockets.get(asker) {
                    asker.send(answer);
                }
            });
            if asked.is_err() {
                return socket.close(); // So much is waiting that the limit `posts` is reached.
            }
        }
    }
}

pub fn serve(at: &str, admin_at: &str) -> io::Result<(Reactor, [Address; 2])> {
    let mut reactor = Reactor::new(Limits::default())?;
    let counter = reactor.add(Counter::default());
    let admin = reactor.add(Admin { counter });
    let listeners = [reactor.listen(at, counter)?, reactor.listen(admin_at, admin)?];
    let addresses = listeners.map(|listener| reactor.local_addr(listener).unwrap_or(Address::Unnamed));
    Ok((reactor, addresses))
}

fn main() -> io::Result<()> {
    serve("127.0.0.1:9001", "127.0.0.1:9002")?.0.run()
}
