use std::time::Duration;
use std::{cell::RefCell, collections::VecDeque, io, rc::Rc};

use tidemill::{Address, Backoff, ConnId, DialOptions, Input, Limits, ListenerId, Reactor};
use tidemill::{Service, ServiceId, Socket, Sockets};

/// Events on their way to the broker, and the connection there. Both services have it; they run on one thread.
#[derive(Default)]
pub struct Events {
    waiting: VecDeque<String>,
    broker: Option<ConnId>,
}

const WAITING_MAX: usize = 1_000;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Answers each line at once, whatever the broker does.
pub struct Front(Rc<RefCell<Events>>);

impl Service for Front {
    type Session = ();
    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(line) = input.take_line() {
            let mut events = self.0.borrow_mut();
            if events.waiting.len() == WAITING_MAX {
                socket.send("not noted: too many events wait\n"); // A bound, and the one it hits is told.
                continue;
            }
            events.waiting.push_back(String::from_utf8_lossy(line).trim_end().to_string());
            socket.send("noted\n");
            if let Some(mut broker) = events.broker.and_then(|id| socket.other(id)) {
                broker.poke();
            }
        }
    }
}

/// One connection to Redis, which appends each event to a list.
pub struct Broker(Address, Rc<RefCell<Events>>);

impl Service for Broker {
    type Session = usize; // The events sent on this connection that have no answer: the first ones that wait.

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        let options = DialOptions { reconnect: Some(Backoff::default()), ..DialOptions::default() };
        sockets.dial_with(self.0.clone(), own, options).expect("a slot: nothing else is connected yet");
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> usize {
        self.1.borrow_mut().broker = Some(socket.id());
        socket.poke();
        0 // What had no answer on the connection before is sent again.
    }

    fn poked(&mut self, sent: &mut usize, socket: &mut Socket<'_>) {
        while let (Some(event), false) = (self.1.borrow().waiting.get(*sent), socket.is_full()) {
            if *sent == 0 {
                socket.set_alarm(Some(ANSWER_WITHIN));
            }
            socket.send(format!("RPUSH events {event:?}\r\n"));
            *sent += 1;
        }
    }

    fn drained(&mut self, sent: &mut usize, socket: &mut Socket<'_>) {
        self.poked(sent, socket);
    }

    fn data(&mut self, sent: &mut usize, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(answer) = input.take_line() {
            if *sent == 0 || !answer.starts_with(b":") {
                return socket.set_alarm(Some(ANSWER_WITHIN)); // It refuses: again later, on a new connection.
            }
            *sent -= 1;
            self.1.borrow_mut().waiting.pop_front();
            socket.set_alarm((*sent > 0).then_some(ANSWER_WITHIN));
        }
    }

    fn alarm(&mut self, _: &mut usize, socket: &mut Socket<'_>, _: u64) {
        socket.redial(); // No answer in time: what comes later would be the answer to another event.
    }
}

pub fn serve(at: &str, broker: Address) -> io::Result<(Reactor, ListenerId)> {
    let mut reactor = Reactor::new(Limits::default())?;
    let events = Rc::default();
    reactor.add(Broker(broker, Rc::clone(&events)));
    let front = reactor.add(Front(events));
    reactor.listen(at, front).map(|listener| (reactor, listener)).map_err(io::Error::from)
}

fn main() -> io::Result<()> {
    serve("127.0.0.1:9001", "127.0.0.1:6379".parse().expect("an address"))?.0.run()
}
