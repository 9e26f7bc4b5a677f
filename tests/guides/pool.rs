use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tidemill::{
    Backoff, CloseReason, ClosedInfo, ConnId, DialOptions, Input, Limits, ListenerId, Origin, Reactor,
    Service, Socket, Sockets,
};

const PATIENCE: Duration = Duration::from_millis(500); // A client's, for the queue and the answer together.

/// Requests and answers are lines. Each upstream connection has one request at a time; the others wait here, at most
/// one of each client.
#[derive(Default)]
pub struct Gateway {
    requests: VecDeque<(ConnId, Vec<u8>)>,
    free: Vec<ConnId>,
}

impl Service for Gateway {
    type Session = Option<ConnId>; // Of an upstream connection: the client that it works for.

    fn open(&mut self, _: &mut Socket<'_>) -> Option<ConnId> {
        None
    }

    fn connected(&mut self, _: &mut Option<ConnId>, socket: &mut Socket<'_>) {
        socket.set_idle(None);
        socket.poke();
    }

    fn data(&mut self, working_for: &mut Option<ConnId>, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let Some(line) = input.take_line() else { return };
        if socket.origin() == Origin::Accepted {
            self.requests.push_back((socket.id(), line.to_vec()));
            socket.pause(); // The next request of this client waits for this answer.
            socket.set_alarm(Some(PATIENCE));
            while let Some(id) = self.free.pop() {
                if let Some(mut upstream) = socket.other(id) {
                    return upstream.poke();
                }
            }
            return;
        }
        if let Some(mut client) = working_for.take().and_then(|id| socket.other(id)) {
            client.send(line);
            client.set_alarm(None);
            client.resume();
        }
        socket.set_alarm(None);
        socket.poke();
    }

    /// An upstream connection is free: it takes the next request, or waits for one. `poked` has its session.
    fn poked(&mut self, working_for: &mut Option<ConnId>, socket: &mut Socket<'_>) {
        let Some((client, request)) = self.requests.pop_front() else { return self.free.push(socket.id()) };
        *working_for = Some(client);
        socket.send(&request);
        socket.set_alarm(Some(PATIENCE));
    }

    fn alarm(&mut self, _: &mut Option<ConnId>, socket: &mut Socket<'_>, _: u64) {
        if socket.origin() == Origin::Accepted {
            socket.send("timeout\n");
        }
        // Closed on both sides: an answer that still comes must not be taken for that of the next request. The reason
        // is not `Local`, so an upstream connection is dialed again.
        socket.close_as(CloseReason::TooSlow);
    }

    fn closed(&mut self, _: Option<ConnId>, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        self.free.retain(|&id| id != gone.id);
        self.requests.retain(|&(id, _)| id != gone.id);
    }
}

pub fn serve(at: &str, upstream: &str, connections: usize) -> io::Result<(Reactor, ListenerId)> {
    let mut reactor = Reactor::new(Limits::default())?;
    let gateway = reactor.add(Gateway::default());
    for _ in 0..connections {
        let options = DialOptions { reconnect: Some(Backoff::default()), ..DialOptions::default() };
        reactor.dial_with(upstream, gateway, options)?;
    }
    let listener = reactor.listen(at, gateway)?;
    Ok((reactor, listener))
}

fn main() -> io::Result<()> {
    serve("127.0.0.1:9001", "127.0.0.1:9100", 4)?.0.run()
}
