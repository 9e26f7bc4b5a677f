//! The servers, each in a process of its own on one processor, with the same backlog and TCP_NODELAY.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tidemill::services::{Echo, Proxy};
use tidemill::{FilterConfig, Limits, ListenOptions, Reactor, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use crate::case::Kind;
use crate::process::{announce, pin, raise_descriptors};
use crate::{fan_out, mio_echo, tls};

/// Runs one server until its process is killed. A proxy gets the address of its backend.
pub fn serve(name: &str, shape: &str, behind: Option<&str>) {
    pin(0);
    raise_descriptors();
    let one = || Builder::new_current_thread().enable_io().build().expect("a runtime");
    let behind = || -> SocketAddr {
        behind.and_then(|address| address.parse().ok()).expect("an address behind the proxy")
    };
    match (Kind::named(name).expect("a server's name"), shape) {
        (Kind::Tidemill, "tls") => tidemill(Echo::raw(), None, false, Some(tls::server())),
        (Kind::Tokio64, "tls") => one().block_on(tls::echo::<65_536>(listener())),
        (_, "tls") => one().block_on(tls::echo::<4_096>(listener())),
        (Kind::Tidemill, "fan-out") => tidemill(fan_out::Lines::default(), None, false, None),
        (Kind::Tidemill, "proxy") => tidemill(Proxy::to(vec![behind().into()]), None, true, None),
        (Kind::Tidemill, "tls-proxy") => {
            tidemill(Proxy::to(vec![behind().into()]), None, true, Some(tls::server()));
        }
        (_, "tls-proxy") => one().block_on(tls::copy(listener(), behind())),
        (Kind::Tidemill, _) => tidemill(Echo::raw(), None, false, None),
        (Kind::TidemillBusyPoll, _) => tidemill(Echo::raw(), Some(Duration::from_micros(50)), false, None),
        (Kind::Tokio64, _) => echo::<65_536>(&one()),
        (Kind::TokioThreads, _) => {
            echo::<4_096>(
                &Builder::new_multi_thread().worker_threads(2).enable_io().build().expect("a runtime"),
            );
        }
        (Kind::TokioMpsc, _) => one().block_on(fan_out::mpsc(listener())),
        (Kind::TokioBroadcast, _) => one().block_on(fan_out::broadcast(listener())),
        (Kind::Mio, _) => mio_echo::serve(listener()),
        (Kind::TokioCopy, _) => one().block_on(copy(behind())),
        _ => echo::<4_096>(&one()),
    }
}

fn tidemill<S: Service>(service: S, busy_poll: Option<Duration>, dials: bool, filter: Option<FilterConfig>) {
    let limits = Limits { connections: 21_000, busy_poll, ..Limits::default() };
    let mut reactor = Reactor::new(limits).expect("a reactor");
    let service = reactor.add(service);
    let options = ListenOptions { reserve_slot: dials, filter, ..ListenOptions::default() };
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
