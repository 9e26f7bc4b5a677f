//! The HTTP server of `--metrics`: one request on a connection, on the loop of the server that it tells of.

use std::any::Any;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Status};
use tidemill::{
    AccessPolicy, ConnId, Handle, Input, Key, Service, ServiceId, ServiceSockets, Socket, SocketLimits,
    Sockets,
};

use super::metrics::Metrics;

/// Connections for metrics at once. One Prometheus server needs one, and a pair of them two.
pub const CONNECTIONS: usize = 8;
/// What a peer beyond these is sent.
pub const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// The longest request. Prometheus' own has some 300 bytes.
const REQUEST_MAX: usize = 8 * 1024;

/// Has a loop do something with the service of the server; false if it does not.
pub type Ask = Box<dyn Fn(Work) -> bool>;
pub type Work = Box<dyn FnOnce(&mut dyn Any, &mut Sockets<'_>) + Send>;

/// How long the other loops have to say what they have. Of one that hangs, what it said before is told.
const WITHIN: Duration = Duration::from_secs(1);

pub struct Scrape {
    metrics: Metrics,
    own: Option<Key<Scrape>>,
    handle: Handle,
    others: Vec<Ask>,
}

/// A request: how many loops have not said yet what they have, and whether only the head is wanted.
#[derive(Default)]
pub struct Request {
    missing: usize,
    is_head: bool,
}

impl Scrape {
    /// `handle` is of the loop that this is for, `others` are the loops of the numbers from 1.
    pub fn new(metrics: Metrics, handle: Handle, others: Vec<Ask>) -> Scrape {
        Scrape { metrics, own: None, handle, others }
    }

    /// Has all loops say what they have; the last one answers.
    fn gather(&self, request: &mut Request, socket: &mut Socket<'_>) {
        self.metrics.take(0, &mut socket.all());
        let (id, Some(own)) = (socket.id(), self.own) else { return };
        for (index, ask) in self.others.iter().enumerate() {
            let (metrics, handle) = (self.metrics.clone(), self.handle.clone());
            let asked = ask(Box::new(move |_, sockets| {
                metrics.take(index + 1, sockets);
                // It fails when the first loop has ended.
                let _ = handle.post_to(own, move |scrape, sockets| scrape.on_part(id, sockets));
            }));
            request.missing += usize::from(asked);
        }
        match request.missing {
            0 => self.answer(request, socket),
            _ => {
                socket.pause();
                socket.set_alarm(Some(WITHIN));
            }
        }
    }

    fn on_part(&mut self, id: ConnId, sockets: &mut ServiceSockets<'_, Scrape>) {
        let Some((request, mut socket)) = sockets.session(id) else { return };
        request.missing = request.missing.saturating_sub(1);
        if request.missing == 0 {
            self.answer(request, &mut socket);
        }
    }

    fn answer(&self, request: &Request, socket: &mut Socket<'_>) {
        send(socket, "200 OK", &self.metrics.encode(), request.is_head);
    }

    /// What a peer may take: enough for a scrape, and not for long.
    pub fn limits() -> SocketLimits {
        let time = Some(Duration::from_secs(10));
        SocketLimits {
            idle: time,
            first_byte: time,
            lifetime: time,
            message: REQUEST_MAX,
            ..SocketLimits::default()
        }
    }

    pub fn policy() -> AccessPolicy {
        AccessPolicy { connections: Some(CONNECTIONS), ..AccessPolicy::default() }
    }
}

fn send(socket: &mut Socket<'_>, status: &str, body: &str, is_head: bool) {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    socket.send(head.as_bytes());
    if !is_head {
        socket.send(body.as_bytes());
    }
    socket.close();
}

impl Service for Scrape {
    type Session = Request;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        self.own = sockets.key(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) -> Request {
        Request::default()
    }

    fn data(&mut self, asked: &mut Request, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let mut headers = [EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let (status, body) = match request.parse(input.bytes()) {
            Ok(Status::Partial) => return, // The rest is still to come; `SocketLimits::message` bounds it.
            Ok(Status::Complete(_)) => match (request.method, request.path) {
                (Some("GET" | "HEAD"), Some(path)) if path.split('?').next() == Some("/metrics") => {
                    asked.is_head = request.method == Some("HEAD");
                    input.take_all();
                    return self.gather(asked, socket);
                }
                (Some("GET" | "HEAD"), _) => ("404 Not Found", "the metrics are at /metrics\n".to_string()),
                _ => ("405 Method Not Allowed", "only GET and HEAD\n".to_string()),
            },
            Err(error) => ("400 Bad Request", format!("{error}\n")),
        };
        let is_head = request.method == Some("HEAD");
        input.take_all();
        send(socket, status, &body, is_head);
    }

    fn alarm(&mut self, asked: &mut Request, socket: &mut Socket<'_>, _: u64) {
        self.answer(asked, socket);
    }
}
