use std::io;
use std::time::Duration;

use tidemill::{CloseReason, IdleKind, Input, Limits, ListenerId, Reactor, Service, Socket, SocketLimits};

const LOGIN: Duration = Duration::from_secs(10);
const BEAT: Duration = Duration::from_secs(30);
const SILENT: Duration = Duration::from_secs(75);

/// The first line logs in, within 10 s. Then the server sends `ping` every 30 s, and closes a connection of which no
/// byte has come for 75 s.
pub struct Beats {
    /// By how much all times are shortened, for tests.
    pub divisor: u32,
}

pub enum Session {
    New,
    LoggedIn { pings: u32 },
}

impl Service for Beats {
    type Session = Session;

    fn open(&mut self, socket: &mut Socket<'_>) -> Session {
        socket.set_alarm(Some(LOGIN / self.divisor)); // Runs whatever the peer sends: a trickle does not delay it.
        Session::New
    }

    fn data(&mut self, session: &mut Session, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(line) = input.take_line() {
            match session {
                Session::New => {
                    *session = Session::LoggedIn { pings: 0 };
                    socket.set_alarm_every(BEAT / self.divisor); // Replaces the alarm of the login.
                    socket.set_read_idle(Some(SILENT / self.divisor));
                    socket.send("welcome\n");
                }
                Session::LoggedIn { .. } if line == b"pong\n" => {}
                Session::LoggedIn { pings } => socket.send(format!("{pings} pings so far\n").as_bytes()),
            }
        }
    }

    fn alarm(&mut self, session: &mut Session, socket: &mut Socket<'_>, _: u64) {
        match session {
            Session::New => {
                socket.send("too late\n");
                socket.close_as(CloseReason::FirstByte);
            }
            Session::LoggedIn { pings } => {
                *pings += 1;
                socket.send("ping\n");
            }
        }
    }

    fn idle(&mut self, _: &mut Session, socket: &mut Socket<'_>, _: IdleKind) {
        socket.send("no sign of life\n");
        socket.close_as(CloseReason::Idle);
    }
}

pub fn serve(at: &str, beats: Beats) -> io::Result<(Reactor, ListenerId)> {
    let mut reactor = Reactor::new(Limits::default())?;
    // Without this, `idle` of the limits would close it after 60 s in which no byte moves in either direction.
    let beats = reactor.add_with(beats, SocketLimits { idle: None, ..SocketLimits::default() });
    let listener = reactor.listen(at, beats)?;
    Ok((reactor, listener))
}

fn main() -> io::Result<()> {
    serve("127.0.0.1:9001", Beats { divisor: 1 })?.0.run()
}
