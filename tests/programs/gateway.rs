//! `GET /key` over HTTP/1.1, answered from Redis through a few pipelined connections, each answer within 500 ms.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Duration;

use tidemill::framing::{Delimiter, Lines};
use tidemill::{
    Backoff, CloseReason, ClosedInfo, ConnId, DialOptions, Input, Limits, ListenerId, Origin, Reactor,
    Service, ServiceId, Socket, SocketLimits, Sockets,
};

const TIMEOUT: Duration = Duration::from_millis(500);
const LINKS: usize = 4;

struct Gateway {
    redis: String,
    head: Delimiter,
    /// The connections to Redis that are up, the one to be used next first.
    links: Vec<ConnId>,
    /// Requests of this turn that no link has sent yet.
    asked: VecDeque<(Waiter, Vec<u8>)>,
}

/// An HTTP connection that waits for its answer; it is paused meanwhile.
struct Waiter {
    http: ConnId,
    keep: bool,
    until: Duration,
}

enum Session {
    Http,
    /// A connection to Redis, and the requests that it has sent, oldest first.
    Link(VecDeque<Waiter>),
}

/// One reply of Redis: the status and the body of the answer.
fn reply<'a>(input: &mut Input<'a>) -> Result<Option<(&'static str, &'a [u8])>, CloseReason> {
    let mut ahead = Input::new(input.bytes());
    let Some(line) = Lines::STRICT.next(&mut ahead)? else { return Ok(None) };
    let answer = match line {
        b"$-1" => ("404 Not Found", &b""[..]),
        [b'$', length @ ..] => {
            let length = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok());
            let length: usize = length.ok_or(CloseReason::Malformed)?;
            let Some(bulk) = ahead.try_take(length.saturating_add(2)) else { return Ok(None) };
            ("200 OK", &bulk[..length])
        }
        [b'+' | b':', text @ ..] => ("200 OK", text),
        [b'-', text @ ..] => ("502 Bad Gateway", text),
        _ => return Err(CloseReason::Malformed),
    };
    input.take(input.len() - ahead.len());
    Ok(Some(answer))
}

fn respond(http: &mut Socket<'_>, keep: bool, status: &str, body: &[u8]) {
    let (how, length) = (if keep { "keep-alive" } else { "close" }, body.len());
    let _ = write!(http, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: {how}\r\n\r\n");
    http.send(body);
    match keep {
        true => http.resume(),
        false => http.close(),
    }
}

fn answer(sockets: &mut Sockets<'_>, waiter: &Waiter, status: &str, body: &[u8]) {
    if let Some(mut http) = sockets.get(waiter.http) {
        respond(&mut http, waiter.keep, status, body);
    }
}

impl Gateway {
    fn dial(&self, own: ServiceId, sockets: &mut Sockets<'_>) {
        let options = DialOptions { reconnect: Some(Backoff::default()), ..DialOptions::default() };
        if let Err(error) = sockets.dial_with(&self.redis, own, options) {
            eprintln!("{error}");
        }
    }

    /// One request at a time: a pipelined one stays untaken while the connection is paused.
    fn request(&mut self, socket: &mut Socket<'_>, input: &mut Input<'_>) -> Result<(), CloseReason> {
        let Some(head) = self.head.next(input)? else { return Ok(()) };
        let head = String::from_utf8_lossy(head);
        let key = head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let keep = !head.to_ascii_lowercase().contains("connection: close");
        socket.pause();
        match self.links.first() {
            _ if key.is_empty() => respond(socket, false, "400 Bad Request", b""),
            None => respond(socket, keep, "503 Service Unavailable", b"no backend\n"),
            Some(&link) => {
                let waiter = Waiter { http: socket.id(), keep, until: socket.elapsed() + TIMEOUT };
                self.asked.push_back((waiter, key.as_bytes().to_vec()));
                socket.other(link).into_iter().for_each(|mut link| link.poke());
            }
        }
        Ok(())
    }

    fn replies(
        waiting: &mut VecDeque<Waiter>,
        link: &mut Socket<'_>,
        input: &mut Input<'_>,
    ) -> Result<(), CloseReason> {
        while let Some((status, body)) = reply(input)? {
            let waiter = waiting.pop_front().ok_or(CloseReason::Malformed)?;
            answer(&mut link.all(), &waiter, status, body);
        }
        let next = waiting.front().map(|waiter| waiter.until.saturating_sub(link.elapsed()));
        link.set_alarm(next);
        Ok(())
    }
}

impl Service for Gateway {
    type Session = Session;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        (0..LINKS).for_each(|_| self.dial(own, sockets));
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> Session {
        if socket.origin() == Origin::Accepted {
            return Session::Http;
        }
        socket.set_idle(None);
        Session::Link(VecDeque::new())
    }

    fn connected(&mut self, _: &mut Session, socket: &mut Socket<'_>) {
        self.links.push(socket.id());
    }

    fn data(&mut self, session: &mut Session, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let done = match session {
            Session::Http => self.request(socket, input),
            Session::Link(waiting) => Gateway::replies(waiting, socket, input),
        };
        if let Err(reason) = done {
            socket.close_as(reason);
        }
    }

    /// A link sends all that was asked for in this turn; the next link serves the next turn.
    fn poked(&mut self, session: &mut Session, link: &mut Socket<'_>) {
        let Session::Link(waiting) = session else { return };
        if waiting.is_empty() {
            link.set_alarm(Some(TIMEOUT));
        }
        for (waiter, key) in self.asked.drain(..) {
            let _ = write!(link, "*2\r\n$3\r\nGET\r\n${}\r\n", key.len());
            link.send(key);
            link.send("\r\n");
            waiting.push_back(waiter);
        }
        self.links.rotate_left(1);
    }

    /// The oldest request has waited too long. Answers come in order, so the link is of no use any more: another one
    /// takes its place.
    fn alarm(&mut self, session: &mut Session, link: &mut Socket<'_>, _: u64) {
        let Session::Link(waiting) = session else { return };
        waiting
            .drain(..)
            .for_each(|waiter| answer(&mut link.all(), &waiter, "504 Gateway Timeout", b"late\n"));
        link.redial();
    }

    fn closed(&mut self, session: Session, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let Session::Link(waiting) = session else { return };
        self.links.retain(|&id| id != gone.id);
        let unsent = self.asked.drain(..).map(|(waiter, _)| waiter);
        for waiter in waiting.into_iter().chain(unsent) {
            answer(sockets, &waiter, "502 Bad Gateway", b"lost\n");
        }
    }
}

/// A reactor with the gateway, which asks `redis`, and its listener on `at`.
pub fn server(at: &str, redis: &str) -> io::Result<(Reactor, ListenerId)> {
    let head = Delimiter::new(b"\r\n\r\n").expect("not empty");
    let mut reactor = Reactor::new(Limits::default())?;
    let gateway = Gateway { redis: redis.into(), head, links: Vec::new(), asked: VecDeque::new() };
    let limits = SocketLimits { message: 8 << 20, queue: 8 << 20, ..SocketLimits::default() };
    let gateway = reactor.add_with(gateway, limits);
    let listener = reactor.listen(at, gateway)?;
    Ok((reactor, listener))
}
