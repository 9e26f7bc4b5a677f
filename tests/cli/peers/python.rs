//! A WebSocket and gRPC, spoken by libraries of Python.

use std::process::Command;

use super::{free_port, start};
use crate::server::{Server, complete, shared};

/// Debian's Python, which has the modules of Debian's packages.
fn python(words: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.args(words);
    command
}

/// Whether this module can be imported. It must be if interoperability is required.
#[track_caller]
fn has_module(module: &str, package: &str) -> bool {
    let there = std::path::Path::new("/usr/bin/python3").is_file()
        && complete(python(&["-c", &format!("import {module}")]), b"").code == Some(0);
    let required = std::env::var("TIDEMILL_INTEROP").is_ok_and(|how| how == "required");
    assert!(there || !required, "{package} is not installed");
    if !there {
        println!("skipped: {package} is not installed");
    }
    there
}

#[test]
fn a_websocket_carries_a_megabyte_fragments_pings_and_its_close_code() {
    let _others = shared();
    if !has_module("websockets", "python3-websockets") {
        return;
    }
    let port = free_port();
    let server = r"
import asyncio, sys, websockets
async def echo(socket):
    try:
        async for message in socket:
            await socket.send(message)
    except websockets.ConnectionClosed:
        pass
async def main():
    async with websockets.serve(echo, '127.0.0.1', int(sys.argv[1]), max_size=None):
        await asyncio.Future()
asyncio.run(main())
";
    let client = r"
import asyncio, os, sys, websockets
async def main():
    async with websockets.connect('ws://127.0.0.1:' + sys.argv[1], max_size=None) as socket:
        for size in [0, 1, 125, 126, 65535, 65536, 1 << 20]:
            sent = os.urandom(size)
            await socket.send(sent)
            assert await socket.recv() == sent, size
        await socket.send(iter(['a message ', 'in ', 'fragments']))
        assert await socket.recv() == 'a message in fragments'
        await asyncio.wait_for(await socket.ping(), 10)
        await socket.close(4001, 'enough')
    print(socket.close_code)
asyncio.run(main())
";
    let _server = start(python(&["-c", server, &port.to_string()]), port);
    let proxy = Server::start(&format!("proxy --to 127.0.0.1:{port}"));
    let outcome = complete(python(&["-c", client, &proxy.address.port().to_string()]), b"");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"4001\n"[..], Some(0)), "{}", outcome.stderr);
}

#[test]
fn grpc_calls_and_streams_in_both_directions_pass_the_proxy() {
    let _others = shared();
    if !has_module("grpc", "python3-grpcio") {
        return;
    }
    let port = free_port();
    // Without serializers the messages are the bytes themselves, so no code has to be generated.
    let server = r"
import sys, time, grpc
from concurrent import futures
calls = {
    'Once': grpc.unary_unary_rpc_method_handler(lambda message, context: message[::-1]),
    'Stream': grpc.stream_stream_rpc_method_handler(lambda messages, context: (m[::-1] for m in messages)),
    'Refuse': grpc.unary_unary_rpc_method_handler(
        lambda message, context: context.abort(grpc.StatusCode.PERMISSION_DENIED, 'not you')),
}
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler('tidemill.Test', calls)])
assert server.add_insecure_port('127.0.0.1:' + sys.argv[1])
server.start()
server.wait_for_termination()
";
    let client = r"
import os, sys, grpc
with grpc.insecure_channel('127.0.0.1:' + sys.argv[1]) as channel:
    for size in [0, 1, 16384, 1 << 20]:
        sent = os.urandom(size)
        assert channel.unary_unary('/tidemill.Test/Once')(sent, timeout=20) == sent[::-1], size
    parts = [os.urandom(30000) for _ in range(50)]
    heard = list(channel.stream_stream('/tidemill.Test/Stream')(iter(parts), timeout=20))
    assert heard == [part[::-1] for part in parts]
    try:
        channel.unary_unary('/tidemill.Test/Refuse')(b'', timeout=20)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
";
    let _server = start(python(&["-c", server, &port.to_string()]), port);
    let proxy = Server::start(&format!("proxy --to 127.0.0.1:{port}"));
    let outcome = complete(python(&["-c", client, &proxy.address.port().to_string()]), b"");
    let heard = String::from_utf8_lossy(&outcome.stdout);
    assert_eq!((&*heard, outcome.code), ("PERMISSION_DENIED not you\n", Some(0)), "{}", outcome.stderr);
}
