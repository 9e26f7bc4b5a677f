//! The servers: each an echo of bytes, with the same backlog and TCP_NODELAY, on one processor.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use rustix::thread::{CpuSet, sched_setaffinity};
use tidemill::services::Echo;
use tidemill::{Limits, Reactor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Tidemill,
    /// As in tokio's own examples: one thread, a task for each connection with a buffer of four kilobytes.
    Tokio4,
    /// The same with a buffer of sixty-four.
    Tokio64,
    /// Tokio's runtime of many threads, two of them, on the same one processor.
    TokioThreads,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Tidemill, Kind::Tokio4, Kind::Tokio64, Kind::TokioThreads];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Tidemill => "tidemill",
            Kind::Tokio4 => "tokio-4k",
            Kind::Tokio64 => "tokio-64k",
            Kind::TokioThreads => "tokio-threads",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Kind::Tidemill => "tidemill",
            Kind::Tokio4 => "tokio current_thread",
            Kind::Tokio64 => "tokio current_thread, 64 KiB",
            Kind::TokioThreads => "tokio multi_thread",
        }
    }
}

/// Keeps this process on one processor, where there are two or more.
pub fn pin(processor: usize) {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    if count > processor {
        let mut set = CpuSet::new();
        set.set(processor);
        // Where it is not allowed, figures are wider apart, and still fair.
        let _ = sched_setaffinity(None, &set);
    }
}

/// What the process of one server does, until it is ended.
pub fn serve(name: &str) {
    pin(0);
    let one = || Builder::new_current_thread().enable_io().build().expect("a runtime");
    match name {
        "tidemill" => tidemill(),
        "tokio-4k" => tokio::<4_096>(&one()),
        "tokio-64k" => tokio::<65_536>(&one()),
        _ => tokio::<4_096>(
            &Builder::new_multi_thread().worker_threads(2).enable_io().build().expect("a runtime"),
        ),
    }
}

fn announce(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().expect("somebody waits for it");
}

fn tidemill() {
    let limits = Limits { connections: 20_000, ..Limits::default() };
    let mut reactor = Reactor::new(limits).expect("a reactor");
    let echo = reactor.add(Echo::raw());
    let listener = reactor.listen("127.0.0.1:0", echo).expect("a listener");
    announce(reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address"));
    reactor.run().expect("it runs until it is ended");
}

fn tokio<const BUFFER: usize>(runtime: &Runtime) {
    runtime.block_on(async {
        let listener = listener();
        announce(listener.local_addr().expect("its address"));
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let mut buffer = vec![0; BUFFER];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(n @ 1..) => {
                            if stream.write_all(&buffer[..n]).await.is_err() {
                                return;
                            }
                        }
                        _ => return,
                    }
                }
            });
        }
    });
}

fn listener() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("an option");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(1_024).expect("a listener");
    socket.into()
}
