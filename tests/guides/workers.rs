use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};
use std::{io, thread};

use tidemill::{ConnId, Handle, Input, Key, Limits, ListenerId, Reactor, Service, ServiceSockets, Socket};

const JOBS_MAX: usize = 256; // In all: what bounds the memory.
const IN_FLIGHT_MAX: usize = 16; // Of one connection, so that it cannot have all of them.

/// Each line is a job for a thread. Answers go out in the order of the lines; several are worked on at a time.
pub struct Workers {
    jobs: mpsc::Sender<(ConnId, u64, Vec<u8>)>,
    running: usize,
    held: VecDeque<ConnId>, // Connections that have a line for which there was no place.
}

/// The jobs of one connection, in order: the oldest has the number `first`. An answer waits for those before it.
#[derive(Default)]
pub struct Session {
    first: u64,
    answers: VecDeque<Option<String>>,
    held: bool,
}

impl Service for Workers {
    type Session = Session;

    fn open(&mut self, _: &mut Socket<'_>) -> Session {
        Session::default()
    }

    fn data(&mut self, session: &mut Session, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while !input.is_empty() {
            if self.running >= JOBS_MAX || session.answers.len() >= IN_FLIGHT_MAX {
                if !std::mem::replace(&mut session.held, true) {
                    self.held.push_back(socket.id());
                }
                return socket.pause(); // The lines stay where they are, and the peer is not read.
            }
            let Some(line) = input.take_line() else { return };
            let number = session.first + session.answers.len() as u64;
            session.answers.push_back(None);
            self.running += 1;
            let _ = self.jobs.send((socket.id(), number, line.to_vec()));
        }
    }
}

impl Workers {
    fn done(&mut self, id: ConnId, number: u64, answer: String, sockets: &mut ServiceSockets<'_, Workers>) {
        self.running -= 1;
        if let Some((session, mut socket)) = sockets.session(id) {
            session.answers[(number - session.first) as usize] = Some(answer);
            while let Some(Some(answer)) = session.answers.front() {
                socket.send(answer);
                session.answers.pop_front();
                session.first += 1;
            }
        }
        while let Some(next) = self.held.pop_front() {
            if let Some((session, mut socket)) = sockets.session(next) {
                session.held = false;
                return socket.resume(); // `data` is called again, with the lines that were left.
            }
        }
    }
}

fn work(jobs: &Mutex<mpsc::Receiver<(ConnId, u64, Vec<u8>)>>, handle: &Handle, key: Key<Workers>) {
    loop {
        let Ok((id, number, line)) = jobs.lock().expect("no worker panics").recv() else { return };
        let answer = format!("{} {}", line.len(), String::from_utf8_lossy(&line)); // The work.
        // Waits for a place among the posts; fails when the reactor is gone, and then `recv` fails, too.
        let _ = handle.post_to_wait(key, move |own, sockets| own.done(id, number, answer, sockets));
    }
}

pub fn serve(at: &str, threads: usize) -> io::Result<(Reactor, ListenerId)> {
    let (sender, receiver) = mpsc::channel();
    let receiver = Arc::new(Mutex::new(receiver));
    let mut reactor = Reactor::new(Limits::default())?;
    let key = reactor.add(Workers { jobs: sender, running: 0, held: VecDeque::new() });
    for _ in 0..threads {
        let (jobs, handle) = (receiver.clone(), reactor.handle());
        thread::spawn(move || work(&jobs, &handle, key));
    }
    let listener = reactor.listen(at, key)?;
    Ok((reactor, listener))
}

fn main() -> io::Result<()> {
    serve("127.0.0.1:9001", 4)?.0.run()
}
