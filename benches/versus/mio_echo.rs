//! An echo on mio, written by hand: edge-triggered, one buffer for all connections, neither timers nor limits.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::process::announce;

const LISTENER: Token = Token(usize::MAX);
const BLOCK: usize = 64 << 10;

struct Connection {
    stream: TcpStream,
    /// What the kernel has not accepted yet. Nothing is read meanwhile.
    unsent: Vec<u8>,
}

pub fn serve(listener: TcpListener) {
    announce(listener.local_addr().expect("its address"));
    let mut listener = mio::net::TcpListener::from_std(listener);
    let mut poll = Poll::new().expect("a poll");
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).expect("a listener");
    let mut events = Events::with_capacity(1_024);
    let mut connections: Slab<Connection> = Slab::new();
    let mut block = vec![0; BLOCK];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled.expect("events"),
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.set_nodelay(true);
                    let entry = connections.vacant_entry();
                    let both = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(entry.key()), both).expect("a stream");
                    entry.insert(Connection { stream, unsent: Vec::new() });
                }
            } else if let Some(connection) = connections.get_mut(event.token().0) {
                // A closed descriptor leaves the poll by itself.
                if connection
                    .echo(&mut block, event.is_read_closed())
                    .is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
                {
                    connections.remove(event.token().0);
                }
            }
        }
    }
}

impl Connection {
    /// Echoes until the stream would block, or has been read with room to spare: the next byte makes a new event.
    /// Not if the peer has sent its end, which makes none.
    fn echo(&mut self, block: &mut [u8], ends: bool) -> std::io::Result<()> {
        loop {
            while !self.unsent.is_empty() {
                let n = self.stream.write(&self.unsent)?;
                self.unsent.drain(..n);
            }
            let n = self.stream.read(block)?;
            if n == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let sent = match self.stream.write(&block[..n]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                sent => sent?,
            };
            self.unsent.extend_from_slice(&block[sent..n]);
            if n < block.len() && !ends && self.unsent.is_empty() {
                return Ok(());
            }
        }
    }
}
