//! What drives a proxy with bytes without end, at a fraction of what a proxy pays for them: this process carries both
//! ends, and would be the bottleneck if it copied.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::net::{RecvFlags, recv};

use crate::driver::Turned;

/// The stream repeats after so much.
const CIRCLE: usize = 1 << 20;
/// What a client asks for at once. The next is asked for when half of it is there, so a stream never pauses.
const PORTION: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// One stream through one proxy: a client asks for portions with a byte each, and the backend sends them.
struct Stream {
    client: TcpStream,
    backend: TcpStream,
    /// What the backend is still to send, and what the client is still to receive.
    owed: usize,
    due: usize,
    asked: bool,
    sent: u64,
    heard: u64,
}

pub struct Bulk {
    listener: TcpListener,
    circle: Vec<u8>,
    /// The same, where the kernel can send it from without a copy.
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

    /// Of the client that has just asked. Somebody else may have come and gone, to see whether the proxy accepts.
    fn other_end(&self) -> TcpStream {
        loop {
            let (mut backend, _) = self.listener.accept().expect("a proxy that connects");
            backend.set_read_timeout(Some(PATIENCE)).expect("an option");
            if matches!(backend.read(&mut [0]), Ok(1)) {
                return backend;
            }
        }
    }

    /// Lets the streams through one proxy flow for so long, and then until they are empty. Bytes are looked at when
    /// they are `checked`, and else only counted. Messages are KiB.
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
            // A discarded byte is not copied, nor is it looked at.
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

/// Which clients can be read, and which backends read or written.
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
