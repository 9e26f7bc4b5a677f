//! An echo and a proxy on monoio and on smol, as in their examples, with a buffer of 64 KiB for each direction.
//!
//! `peers --serve monoio|monoio-epoll|smol echo|proxy [BACKEND]` prints its address and serves until it is ended.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

const BUFFER: usize = 64 << 10;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ["--serve", name, shape, ref behind @ ..] = words[..] else { panic!("--serve NAME SHAPE [BACKEND]") };
    let behind = behind.first().map(|address| address.parse().expect("an address"));
    assert_eq!(behind.is_some(), shape == "proxy", "a proxy has a backend, and an echo has none");
    let mut first = CpuSet::new();
    first.set(0);
    // If pinning is not allowed, ranges are wider, but the comparison is still fair.
    let _ = sched_setaffinity(None, &first);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    match name {
        "monoio" => {
            let runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build();
            runtime.expect("io_uring").block_on(on_monoio(listener(), behind));
        }
        "monoio-epoll" => {
            let runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build();
            runtime.expect("epoll").block_on(on_monoio(listener(), behind));
        }
        "smol" => on_smol(listener(), behind),
        _ => panic!("there is no {name}"),
    }
}

fn listener() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("an option");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(1_024).expect("a listener");
    let listener: TcpListener = socket.into();
    println!("{}", listener.local_addr().expect("its address"));
    std::io::stdout().flush().expect("the parent process reads it");
    listener
}

async fn on_monoio(listener: TcpListener, behind: Option<SocketAddr>) {
    use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Splitable};
    use monoio::net::{TcpListener, TcpStream};

    async fn copy(mut from: impl AsyncReadRent, mut to: impl AsyncWriteRent) {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            let (read, full) = from.read(buffer).await;
            if !matches!(read, Ok(1..)) {
                break;
            }
            let (written, empty) = to.write_all(full).await;
            if written.is_err() {
                break;
            }
            buffer = empty;
            buffer.clear();
        }
        let _ = to.shutdown().await;
    }

    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        monoio::spawn(async move {
            let (reader, writer) = stream.into_split();
            let Some(behind) = behind else { return copy(reader, writer).await };
            let Ok(upstream) = TcpStream::connect_addr(behind).await else { return };
            let _ = upstream.set_nodelay(true);
            let (back, forth) = upstream.into_split();
            let way_back = monoio::spawn(copy(back, writer));
            copy(reader, forth).await;
            way_back.await;
        });
    }
}

fn on_smol(listener: TcpListener, behind: Option<SocketAddr>) {
    use smol::Async;
    use smol::io::{AsyncReadExt, AsyncWriteExt};
    use std::net::{Shutdown, TcpStream};

    async fn copy(mut from: &Async<TcpStream>, mut to: &Async<TcpStream>) {
        let mut buffer = vec![0; BUFFER];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            if to.write_all(&buffer[..n]).await.is_err() {
                break;
            }
        }
        let _ = to.get_ref().shutdown(Shutdown::Write);
    }

    let executor = smol::LocalExecutor::new();
    smol::block_on(executor.run(async {
        let listener = Async::new(listener).expect("a listener");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.get_ref().set_nodelay(true);
            let serve = async move {
                let Some(behind) = behind else { return copy(&stream, &stream).await };
                let Ok(upstream) = Async::<TcpStream>::connect(behind).await else { return };
                let _ = upstream.get_ref().set_nodelay(true);
                smol::future::zip(copy(&stream, &upstream), copy(&upstream, &stream)).await;
            };
            executor.spawn(serve).detach();
        }
    }));
}
