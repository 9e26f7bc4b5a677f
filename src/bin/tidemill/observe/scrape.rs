//! The HTTP server of `--metrics`: one request on a connection, on the loop of the server that it tells of.

use std::time::Duration;

use httparse::{EMPTY_HEADER, Request, Status};
use tidemill::{AccessPolicy, Input, Service, Socket, SocketLimits};

use super::metrics::Metrics;

/// Connections for metrics at once. One Prometheus server needs one, and a pair of them two.
pub const CONNECTIONS: usize = 8;
/// What a peer beyond these is sent.
pub const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// The longest request. Prometheus' own has some 300 bytes.
const REQUEST_MAX: usize = 8 * 1024;

pub struct Scrape {
    metrics: Metrics,
}

impl Scrape {
    pub fn new(metrics: Metrics) -> Scrape {
        Scrape { metrics }
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

impl Service for Scrape {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, (): &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let mut headers = [EMPTY_HEADER; 64];
        let mut request = Request::new(&mut headers);
        let (status, body) = match request.parse(input.bytes()) {
            Ok(Status::Partial) => return, // The rest is still to come; `SocketLimits::message` bounds it.
            Ok(Status::Complete(_)) => match (request.method, request.path) {
                (Some("GET" | "HEAD"), Some(path)) if path.split('?').next() == Some("/metrics") => {
                    ("200 OK", self.metrics.encode(&mut socket.all()))
                }
                (Some("GET" | "HEAD"), _) => ("404 Not Found", "the metrics are at /metrics\n".to_string()),
                _ => ("405 Method Not Allowed", "only GET and HEAD\n".to_string()),
            },
            Err(error) => ("400 Bad Request", format!("{error}\n")),
        };
        let is_head = request.method == Some("HEAD");
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        input.take_all();
        socket.send(head.as_bytes());
        if !is_head {
            socket.send(body.as_bytes());
        }
        socket.close();
    }
}
