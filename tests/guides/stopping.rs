use std::io;
use std::time::Duration;

use tidemill::{Input, Key, Limits, ListenerId, Reactor, Service, ServiceSockets, Socket};

/// A keep-alive protocol: a line is a request, and its answer takes a while. When the server stops, connections
/// between two requests are closed at once, and the others after their answer.
pub struct Server;

impl Service for Server {
    type Session = bool; // Whether a request is being worked on.

    fn stopping(&mut self, _: Duration, sockets: &mut ServiceSockets<'_, Server>) {
        sockets.for_each(|busy, mut socket| {
            if !*busy {
                socket.close();
            }
        });
    }

    fn open(&mut self, _: &mut Socket<'_>) -> bool {
        false
    }

    fn data(&mut self, busy: &mut bool, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        if input.take_line().is_some() {
            *busy = true;
            socket.pause();
            socket.set_alarm(Some(Duration::from_millis(50))); // The work: an upstream, a thread, a file.
        }
    }

    fn alarm(&mut self, busy: &mut bool, socket: &mut Socket<'_>, _: u64) {
        *busy = false;
        if socket.all().is_shutting_down() {
            socket.send("done, closing\n");
            return socket.close(); // Sends what is queued first. A request that came meanwhile is not begun.
        }
        socket.send("done\n");
        socket.resume();
    }
}

pub fn serve(at: &str) -> io::Result<(Reactor, Key<Server>, ListenerId)> {
    let mut reactor = Reactor::new(Limits::default())?;
    let server = reactor.add(Server);
    let listener = reactor.listen(at, server)?;
    Ok((reactor, server, listener))
}

fn main() -> io::Result<()> {
    let (mut reactor, ..) = serve("127.0.0.1:9001")?;
    let handle = reactor.handle();
    // In place of a signal: the end of standard input.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = handle.post_wait(|sockets| sockets.shutdown(Duration::from_secs(20)));
    });
    reactor.run()
}
