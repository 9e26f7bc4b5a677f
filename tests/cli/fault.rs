//! `tidemill proxy --fault` and `--mirror`, over the network.

use std::io::Write;
use std::time::Duration;

use crate::peer::{Peer, listener};
use crate::server::{Server, run, shared, until};

const SECOND: Duration = Duration::from_secs(1);

/// What the log says of twelve connections that send 4 KiB each, one after the other.
fn outcomes(proxy: &Server) -> Vec<String> {
    let line = |n: usize| {
        let mut peer = Peer::connect(proxy.address);
        // It may be cut or reset meanwhile.
        let _ = peer.0.write_all(&[b'x'; 4096]);
        let _ = peer.0.shutdown(std::net::Shutdown::Write);
        let of =
            |log: String| log.lines().filter(|line| line.contains(" client=")).nth(n).map(str::to_string);
        until("the line of the connection", 10 * SECOND, || of(proxy.log()).is_some());
        let line = of(proxy.log()).expect("it is there");
        line.split_once(" fault=").map_or(String::new(), |(_, fault)| fault.to_string())
    };
    (0..12).map(line).collect()
}

#[test]
fn a_run_is_repeated_by_the_seed_that_its_log_names() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    for shards in ["", "--shards 2"] {
        let start = |more: &str| {
            let to = echo.address;
            let faults = "latency=2ms±1ms,up:cut=40%,up:reset=40%";
            Server::start(&format!("proxy --to {to} --fault {faults} {shards} {more}"))
        };
        let first = start("");
        until("the seed is logged", 10 * SECOND, || first.log().contains(" repeats them"));
        let log = first.log();
        let seed = log.lines().find_map(|line| line.split_once("--fault-seed ")?.1.split(' ').next());
        let seed = seed.unwrap_or_else(|| panic!("no seed in {log}"));
        let drawn = outcomes(&first);
        assert!(drawn.iter().any(|fault| !fault.is_empty()), "of twelve, each with 64 %: {drawn:?}");
        assert_eq!(outcomes(&start(&format!("--fault-seed {seed}"))), drawn, "seed {seed} {shards}");
    }
}

#[test]
fn a_mirror_that_does_not_read_is_dropped_and_the_client_does_not_notice() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let (mirror, address) = listener();
    let proxy = Server::start(&format!("proxy --to {} --mirror {address}", echo.address));
    let mut client = Peer::connect(proxy.address);
    client.send("first");
    assert_eq!(client.receive(5), b"first");
    let (copy, _) = mirror.accept().expect("a connection from the proxy");
    let mut copy = Peer(copy);
    assert_eq!(copy.receive(5), b"first");
    let block = vec![b'x'; 1 << 20];
    for _ in 0..32 {
        client.send(&block);
        assert_eq!(client.receive(block.len()).len(), block.len());
    }
    until("the mirror is dropped", 10 * SECOND, || {
        proxy.log().contains("dropped by the mirror: 1 stalled=1")
    });
    client.finish();
    assert_eq!(client.receive_all(), b"");
    until("its line", 10 * SECOND, || proxy.log().contains("upstream=finished mirror=stalled"));
}

#[test]
fn a_fault_that_is_written_wrongly_or_for_no_upstream_is_named() {
    let _others = shared();
    for (options, part) in [
        ("--fault speed=1", "\"speed=1\": a fault is latency=TIME"),
        ("--fault cut=1% --fault reset=1%", "--fault number 2 is for all upstreams, as one before it is"),
        ("--fault to=127.0.0.1:8,cut=1%", "--fault to=127.0.0.1:8 has no effect: no --to or --route"),
        ("--fault-seed 7", "--fault"),
        ("--mirror 9004", "a host is missing"),
    ] {
        let words: Vec<&str> =
            ["proxy", "--to", "127.0.0.1:9"].into_iter().chain(options.split(' ')).collect();
        let outcome = run(&words, b"");
        assert_eq!(outcome.code, Some(2), "{options}");
        assert!(outcome.stderr.contains(part), "{options}: {}", outcome.stderr);
    }
}
