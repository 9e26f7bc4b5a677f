//! Static files over HTTP/1.1 and HTTPS: keep-alive, pipelining, GET and HEAD, files of any size.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use tidemill::framing::Delimiter;
use tidemill::tls::Server;
use tidemill::{
    CloseReason, Input, Limits, ListenOptions, ListenerId, Reactor, Service, ServiceSockets, Socket,
    SocketLimits,
};

const HEAD_MAX: usize = 16 * 1024;

struct Files {
    root: PathBuf,
    head: Delimiter,
}

/// What a request asks for.
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    keep: bool,
}

fn parse(head: &str) -> Option<Request<'_>> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, path, version) = (words.next()?, words.next()?, words.next()?);
    let connection = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("connection"))
        .map(|(_, value)| value.trim().to_ascii_lowercase());
    let keep = match connection.as_deref() {
        Some("close") => false,
        Some("keep-alive") => true,
        _ => version == "HTTP/1.1",
    };
    Some(Request { method, path, keep })
}

impl Files {
    /// The file and its length; of a directory, those of its index.
    fn open(&self, path: &str) -> Option<(File, u64)> {
        let path = path.split('?').next()?.trim_start_matches('/');
        if Path::new(path).components().any(|part| !matches!(part, Component::Normal(_))) {
            return None;
        }
        // Opened first and asked then what it is, so that a file costs one system call less.
        let open =
            |path: &Path| File::open(path).and_then(|file| file.metadata().map(|about| (file, about))).ok();
        let full = self.root.join(path);
        let (mut file, mut about) = open(&full)?;
        if about.is_dir() {
            (file, about) = open(&full.join("index.html"))?;
        }
        about.is_file().then_some((file, about.len()))
    }

    /// Answers a request; returns whether the connection stays open.
    fn respond(&self, socket: &mut Socket<'_>, head: &[u8]) -> bool {
        let head = String::from_utf8_lossy(head);
        let request = parse(&head).filter(|request| matches!(request.method, "GET" | "HEAD"));
        let keep = request.as_ref().is_some_and(|request| request.keep);
        let found = request.as_ref().and_then(|request| self.open(request.path));
        let status = match (&request, &found) {
            (None, _) => "400 Bad Request",
            (_, None) => "404 Not Found",
            (_, Some(_)) => "200 OK",
        };
        let length = found.as_ref().map_or(0, |(_, length)| *length);
        let how = if keep { "keep-alive" } else { "close" };
        let _ = write!(socket, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: {how}\r\n\r\n");
        if let Some((file, length)) = found.filter(|_| request.is_some_and(|request| request.method == "GET"))
        {
            socket.send_file(file, 0..length);
        }
        keep
    }
}

impl Service for Files {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        // What is queued bounds this loop: once it is much, `input` shows no more until the peer has read.
        loop {
            match self.head.next(input) {
                Ok(Some(head)) if self.respond(socket, head) && !socket.all().is_shutting_down() => {}
                Ok(Some(_)) => return socket.close(),
                Ok(None) => return,
                Err(_) => {
                    socket.send("HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n");
                    return socket.close_as(CloseReason::TooLong);
                }
            }
        }
    }

    /// Every answer is queued as soon as its request is there, and `close` sends what is queued.
    fn stopping(&mut self, _: Duration, sockets: &mut ServiceSockets<'_, Files>) {
        sockets.for_each(|_, mut socket| socket.close());
    }
}

/// A reactor and its listener, which serve the files below `root` on `at`, with TLS if there is a server for it.
pub fn server(root: &Path, at: &str, tls: Option<&Server>) -> io::Result<(Reactor, ListenerId)> {
    let head = Delimiter::new(b"\r\n\r\n").expect("not empty").max(HEAD_MAX);
    let mut reactor = Reactor::new(Limits::default())?;
    let limits = SocketLimits { message: HEAD_MAX + 4, ..SocketLimits::default() };
    let files = reactor.add_with(Files { root: root.into(), head }, limits);
    let filter = tls.map(Server::filter_config);
    let listener = reactor.listen_with(at, files, &ListenOptions { filter, ..ListenOptions::default() })?;
    Ok((reactor, listener))
}
