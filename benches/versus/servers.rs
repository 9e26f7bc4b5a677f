//! The servers, each in a process of its own on one processor, with the same backlog and TCP_NODELAY.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use tidemill::services::{Echo, Proxy};
use tidemill::{Limits, ListenOptions, Reactor, Security, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use crate::case::Shape;
use crate::fan_out;
use crate::tls;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Tidemill,
    /// It looks for events for a moment before it sleeps.
    TidemillSpin,
    /// As in tokio's own examples: one thread, a task for each connection with a buffer of four kilobytes.
    Tokio4,
    /// The same with a buffer of sixty-four.
    Tokio64,
    /// Tokio's runtime of many threads, two of them, on the same one processor.
    TokioThreads,
    /// A fan-out with a channel for each receiver.
    TokioMpsc,
    /// A fan-out with one channel for all.
    TokioBroadcast,
    /// A proxy by `copy_bidirectional`.
    TokioCopy,
    /// An echo on bare epoll in C, edge-triggered: what the kernel itself costs.
    Epoll,
    Libuv,
    Node,
    HaProxy,
    HaProxySplice,
    Nginx,
}

impl Kind {
    pub const ALL: [Kind; 14] = [
        Kind::Tidemill,
        Kind::TidemillSpin,
        Kind::Tokio4,
        Kind::Tokio64,
        Kind::TokioThreads,
        Kind::TokioMpsc,
        Kind::TokioBroadcast,
        Kind::TokioCopy,
        Kind::Epoll,
        Kind::Libuv,
        Kind::Node,
        Kind::HaProxy,
        Kind::HaProxySplice,
        Kind::Nginx,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Tidemill => "tidemill",
            Kind::TidemillSpin => "tidemill-spin",
            Kind::Tokio4 => "tokio-4k",
            Kind::Tokio64 => "tokio-64k",
            Kind::TokioThreads => "tokio-threads",
            Kind::TokioMpsc => "tokio-mpsc",
            Kind::TokioBroadcast => "tokio-broadcast",
            Kind::TokioCopy => "tokio-copy",
            Kind::Epoll => "epoll",
            Kind::Libuv => "libuv",
            Kind::Node => "node",
            Kind::HaProxy => "haproxy",
            Kind::HaProxySplice => "haproxy-splice",
            Kind::Nginx => "nginx",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Kind::Tidemill => "tidemill",
            Kind::TidemillSpin => "tidemill, spin 50 µs",
            Kind::Tokio4 => "tokio current_thread",
            Kind::Tokio64 => "tokio current_thread, 64 KiB",
            Kind::TokioThreads => "tokio multi_thread",
            Kind::TokioMpsc => "tokio, a channel each",
            Kind::TokioBroadcast => "tokio, broadcast",
            Kind::TokioCopy => "tokio copy_bidirectional",
            Kind::Epoll => "bare epoll in C",
            Kind::Libuv => "libuv",
            Kind::Node => "Node",
            Kind::HaProxy => "HAProxy",
            Kind::HaProxySplice => "HAProxy, splice-auto",
            Kind::Nginx => "nginx stream",
        }
    }

    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it is another program, measured on request and where it is installed.
    pub fn is_peer(self) -> bool {
        self >= Kind::Epoll
    }

    /// What a peer is good for.
    pub fn does(self, shape: Shape) -> bool {
        match self {
            Kind::Epoll | Kind::Libuv | Kind::Node => matches!(shape, Shape::Echo | Shape::Churn),
            Kind::HaProxySplice => shape == Shape::Bulk,
            Kind::HaProxy | Kind::Nginx => {
                matches!(shape, Shape::Proxy | Shape::ProxyChurn | Shape::Bulk)
            }
            _ => false,
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

/// What the process of one server does, until it is ended. A proxy is told what is behind it.
pub fn serve(name: &str, shape: &str, behind: Option<&str>) {
    pin(0);
    crate::run::raise_descriptors();
    let one = || Builder::new_current_thread().enable_io().build().expect("a runtime");
    let behind = || -> SocketAddr {
        behind.and_then(|address| address.parse().ok()).expect("an address behind the proxy")
    };
    match (Kind::named(name).expect("a server's name"), shape) {
        (Kind::Tidemill, "tls") => tidemill(Echo::raw(), None, false, Some(tls::server())),
        (Kind::Tokio64, "tls") => one().block_on(tls::echo::<65_536>(listener())),
        (_, "tls") => one().block_on(tls::echo::<4_096>(listener())),
        (Kind::Tidemill, "fan-out") => tidemill(fan_out::Lines::default(), None, false, None),
        (Kind::Tidemill, "proxy") => {
            let proxy = Proxy::to(vec![behind().into()]);
            tidemill(proxy, None, true, None);
        }
        (Kind::Tidemill, _) => tidemill(Echo::raw(), None, false, None),
        (Kind::TidemillSpin, _) => tidemill(Echo::raw(), Some(Duration::from_micros(50)), false, None),
        (Kind::Tokio64, _) => echo::<65_536>(&one()),
        (Kind::TokioThreads, _) => {
            echo::<4_096>(
                &Builder::new_multi_thread().worker_threads(2).enable_io().build().expect("a runtime"),
            );
        }
        (Kind::TokioMpsc, _) => one().block_on(fan_out::mpsc(listener())),
        (Kind::TokioBroadcast, _) => one().block_on(fan_out::broadcast(listener())),
        (Kind::TokioCopy, _) => one().block_on(copy(behind())),
        _ => echo::<4_096>(&one()),
    }
}

pub fn announce(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().expect("somebody waits for it");
}

fn tidemill<S: Service>(service: S, spin: Option<Duration>, dials: bool, secure: Option<Security>) {
    let limits = Limits { connections: 21_000, spin, ..Limits::default() };
    let mut reactor = Reactor::new(limits).expect("a reactor");
    let service = reactor.add(service);
    let options = ListenOptions { dials, secure, ..ListenOptions::default() };
    let listener = reactor.listen_with("127.0.0.1:0", service, &options).expect("a listener");
    announce(reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address"));
    reactor.run().expect("it runs until it is ended");
}

fn echo<const BUFFER: usize>(runtime: &Runtime) {
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

async fn copy(behind: SocketAddr) {
    let listener = listener();
    announce(listener.local_addr().expect("its address"));
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let _ = client.set_nodelay(true);
            let Ok(mut upstream) = tokio::net::TcpStream::connect(behind).await else { return };
            let _ = upstream.set_nodelay(true);
            let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
        });
    }
}

pub fn listener() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("an option");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(1_024).expect("a listener");
    socket.into()
}
