//! Drives a proxy with endless streams, at a fraction of the proxy's own cost: this process is client and backend, and
//! would be the bottleneck if it copied the bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::net::{RecvFlags, recv};

use crate::driver::Turned;

/// The stream repeats after this many bytes.
const CIRCLE: usize = 1 << 20;
/// Bytes that a client requests at once. It requests the next portion when half of it has arrived, so a stream never
/// pauses.
const PORTION: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// One stream through one proxy: a client requests portions with one byte each, and the backend sends them.
struct Stream {
    client: TcpStream,
    backend: TcpStream,
    /// Bytes that the backend still has to send, and that the client still has to receive.
    owed: usize,
    due: usize,
    asked: bool,
    sent: u64,
    heard: u64,
}

pub struct Bulk {
    listener: TcpListener,
    circle: Vec<u8>,
    /// The same bytes in a file, from which sendfile(2) sends without a copy.
    file: OwnedFd,
    block: Vec<u8>,
    streams: Vec<Vec<Stream>>,
}

impl Bulk {
    pub fn new() -> Bulk {
        let circle: Vec<u8> = (0..CIRCLE).map(|n| (n % 251) as u8 ^ (n >> 12) as u8).collect();
        let file = memfd_create("circle", MemfdFlags::CLOEXEC).expect("a file in memory");
        let mut writer = std::fs::File::from(file.try_clone().expect("a descriptor"));
        writer.write_all(&circle).expect("room in memory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        Bulk { listener, circle, file, block: vec![0; CIRCLE], streams: Vec::new() }
    }

    pub fn backend(&self) -> SocketAddr {
        self.listener.local_addr().expect("its address")
    }

    pub fn connect(&mut self, proxies: &[SocketAddr], count: usize) {
        for proxy in proxies {
            let streams = (0..count).map(|_| {
                let mut client = TcpStream::connect(proxy).expect("a proxy that accepts");
                client.write_all(b"?").expect("a proxy that reads");
                let backend = self.other_end();
                for stream in [&client, &backend] {
                    stream.set_nonblocking(true).expect("an option");
                    stream.set_nodelay(true).expect("an option");
                }
                Stream { client, backend, owed: 0, due: 0, asked: false, sent: 0, heard: 0 }
            });
            let streams = streams.collect();
            self.streams.push(streams);
        }
    }

    /// Accepts the backend's end of the client that has just sent its request. Connections that end without a byte are
    /// skipped: they only checked whether the proxy accepts.
    fn other_end(&self) -> TcpStream {
        loop {
            let (mut backend, _) = self.listener.accept().expect("a proxy that connects");
            backend.set_read_timeout(Some(PATIENCE)).expect("an option");
            if matches!(backend.read(&mut [0]), Ok(1)) {
                return backend;
            }
        }
    }

    /// Runs the streams through one proxy for `span`, and then until they are empty. Bytes are compared if `checked`,
    /// else only counted. A message is one KiB.
    pub fn turn(&mut self, proxy: usize, span: Duration, checked: bool) -> Turned {
        let begun = Instant::now();
        let mut streams = std::mem::take(&mut self.streams[proxy]);
        let mut heard = 0;
        loop {
            let spent = begun.elapsed();
            assert!(spent < span + PATIENCE, "a proxy does not pass on what it was given");
            for stream in &mut streams {
                if spent < span && !stream.asked && stream.due <= PORTION / 2 {
                    stream.client.write_all(b"!").expect("a proxy that reads");
                    (stream.asked, stream.due) = (true, stream.due + PORTION);
                }
            }
            if streams.iter().all(|stream| stream.due == 0) {
                break;
            }
            let ready: Vec<(bool, bool)> = wait(&streams);
            for (stream, (client, backend)) in streams.iter_mut().zip(ready) {
                if backend {
                    self.send(stream);
                }
                if client {
                    heard += self.receive(stream, checked);
                }
            }
        }
        self.streams[proxy] = streams;
        Turned { messages: heard / 1_024, span: begun.elapsed() }
    }

    fn send(&self, stream: &mut Stream) {
        let mut asked = [0; 8];
        while let Ok(n @ 1..) = (&stream.backend).read(&mut asked) {
            stream.owed += n * PORTION;
            stream.asked = false;
        }
        while stream.owed > 0 {
            let mut offset = stream.sent % CIRCLE as u64;
            let max = stream.owed.min(CIRCLE - offset as usize);
            let Ok(n @ 1..) = sendfile(&stream.backend, &self.file, Some(&mut offset), max) else { return };
            stream.owed -= n;
            stream.sent += n as u64;
        }
    }

    fn receive(&mut self, stream: &mut Stream, checked: bool) -> u64 {
        let mut all = 0;
        while stream.due > 0 {
            // MSG_TRUNC: the kernel discards the bytes without copying them.
            let flags = if checked { RecvFlags::empty() } else { RecvFlags::TRUNC };
            let at = (stream.heard % CIRCLE as u64) as usize;
            let max = stream.due.min(CIRCLE - at);
            let n = match recv(&stream.client, &mut self.block[..max], flags) {
                Ok((_, n @ 1..)) => n,
                Ok(_) => panic!("a proxy has ended a stream"),
                Err(rustix::io::Errno::AGAIN) => return all,
                Err(error) => panic!("a stream broke: {error}"),
            };
            if checked {
                assert!(self.block[..n] == self.circle[at..at + n], "a proxy has passed on other bytes");
            }
            stream.due -= n;
            stream.heard += n as u64;
            all += n as u64;
        }
        all
    }
}

/// Which clients are readable, and which backends are readable or writable.
fn wait(streams: &[Stream]) -> Vec<(bool, bool)> {
    let mut watched = Vec::with_capacity(2 * streams.len());
    for stream in streams {
        let writes = if stream.owed > 0 { PollFlags::OUT } else { PollFlags::empty() };
        watched.push(PollFd::new(&stream.client, PollFlags::IN));
        watched.push(PollFd::new(&stream.backend, PollFlags::IN | writes));
    }
    let soon = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    poll(&mut watched, Some(&soon)).expect("a poll");
    watched.chunks(2).map(|pair| (!pair[0].revents().is_empty(), !pair[1].revents().is_empty())).collect()
}
