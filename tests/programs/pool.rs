//! Lines are jobs for a pool of threads. Several of one connection are in progress at once; answers come in order.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use tidemill::framing::Lines;
use tidemill::{ConnId, Input, Limits, ListenerId, Reactor, Service, Socket};

/// Jobs that wait for a thread, of all connections together.
const JOBS: usize = 1024;
/// Jobs of one connection in progress.
const IN_PROGRESS: usize = 16;

struct Job {
    connection: ConnId,
    number: u64,
    line: String,
}

struct Jobs {
    queue: mpsc::SyncSender<Job>,
}

/// The jobs of a connection in progress, oldest first, with the answers that are there already.
#[derive(Default)]
struct Session {
    answers: VecDeque<Option<String>>,
    /// The number of the first of them.
    first: u64,
}

impl Session {
    fn answer(&mut self, socket: &mut Socket<'_>, number: u64, answer: String) {
        self.answers[(number - self.first) as usize] = Some(answer);
        while let Some(answer) = self.answers.front_mut().and_then(Option::take) {
            socket.send(answer);
            self.answers.pop_front();
            self.first += 1;
        }
        socket.resume();
    }
}

impl Service for Jobs {
    type Session = Session;

    fn open(&mut self, _: &mut Socket<'_>) -> Session {
        Session::default()
    }

    fn data(&mut self, session: &mut Session, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while session.answers.len() < IN_PROGRESS {
            let line = match Lines::LENIENT.next(input) {
                Ok(Some(line)) => String::from_utf8_lossy(line).into_owned(),
                Ok(None) => return,
                Err(error) => return socket.close_as(error.into()),
            };
            let number = session.first + session.answers.len() as u64;
            session.answers.push_back(None);
            if self.queue.try_send(Job { connection: socket.id(), number, line }).is_err() {
                session.answer(socket, number, "busy\n".into());
            }
        }
        socket.pause(); // Until the next answer; more lines stay untaken.
    }

    fn end(&mut self, session: &mut Session, socket: &mut Socket<'_>) {
        if session.answers.is_empty() {
            socket.finish();
        }
    }
}

/// A reactor with the pool, and its listener on `at`. `work` makes an answer of a line, on one of `threads` threads.
pub fn server(at: &str, threads: usize, work: fn(&str) -> String) -> io::Result<(Reactor, ListenerId)> {
    let (queue, jobs) = mpsc::sync_channel::<Job>(JOBS);
    let jobs = Arc::new(Mutex::new(jobs));
    let mut reactor = Reactor::new(Limits::default())?;
    let key = reactor.add(Jobs { queue });
    let listener = reactor.listen(at, key)?;
    for _ in 0..threads {
        let (jobs, handle) = (jobs.clone(), reactor.handle());
        thread::spawn(move || {
            let next = || jobs.lock().ok()?.recv().ok();
            while let Some(Job { connection, number, line }) = next() {
                let answer = work(&line);
                let posted = handle.post_to_wait(key, move |_, sockets| {
                    let Some((session, mut socket)) = sockets.session(connection) else { return };
                    session.answer(&mut socket, number, answer);
                    if session.answers.is_empty() && socket.has_ended() {
                        socket.finish();
                    }
                });
                if posted.is_err() {
                    return;
                }
            }
        });
    }
    Ok((reactor, listener))
}
