//! Node's `tls` on the other side of our servers.

use super::Certificates;
use crate::interop::{has, node};
use crate::server::{Server, shared};

/// Common code of the Node programs: `extra` is the folder of the certificates.
pub const TLS: &str = r"
const tls = require('tls');
const version = process.argv[3];
const paper = (file) => require('fs').readFileSync(`${extra}/${file}`);
const trusting = { port, host: '127.0.0.1', servername: 'localhost', ca: paper('ca.pem') };
";

/// Sends ten megabytes and FIN, and reads the echo; prints what Node reports about the connection.
pub const BULK: &str = r"
const sent = require('crypto').randomBytes(10 << 20);
const order = [];
const heard = [];
const options = { ...trusting, allowHalfOpen: true, ALPNProtocols: ['tide'], maxVersion: version };
const socket = tls.connect(options, () => {
    order.push('secure', socket.getProtocol() === version, socket.authorized, socket.alpnProtocol,
        socket.getPeerCertificate().subject.CN);
    for (let at = 0, n = 1; at < sent.length; at += n, n = (n * 7) % 60013 + 1) {
        socket.write(sent.subarray(at, at + n));
    }
    socket.end();
});
socket.on('data', (data) => heard.push(data));
socket.on('end', () => order.push('end'));
socket.on('error', (error) => order.push(error.code));
socket.on('close', (hadError) =>
    told([...order, 'close', hadError, Buffer.concat(heard).equals(sent)].join(' ')));
";

#[test]
fn a_node_client_gets_ten_megabytes_back_then_a_clean_end_and_trusts_the_certificate() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let certificates = Certificates::of("node-bulk");
    let shown = format!("--tls-alpn tide {}", certificates.server_args("server"));
    let echo = Server::start(&format!("echo --raw {shown}"));
    let plain = Server::start("echo --raw");
    let proxy = Server::start(&format!("proxy --to {} {shown}", plain.address));
    for to in [echo.address, proxy.address] {
        for version in ["TLSv1.2", "TLSv1.3"] {
            let words = [&to.port().to_string(), &certificates.path(""), version];
            let output = node(&format!("{TLS}{BULK}"), &words);
            assert_eq!(output, "secure true true tide server end close false true\n", "{version} to {to}");
        }
    }
}

#[test]
fn a_node_client_works_with_frames_and_chat_over_tls() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let certificates = Certificates::of("node-frames");
    let frames = Server::start(&format!("frames {}", certificates.server_args("server")));
    let frame = r"
    const bodies = ['', 'a', 'x'.repeat(70000), 'last'];
    const wire = Buffer.concat(bodies.flatMap((body) => {
        const head = Buffer.alloc(4);
        head.writeUInt32BE(body.length);
        return [head, Buffer.from(body)];
    }));
    // One byte in its own record, then the rest.
    const socket = tls.connect({ ...trusting, maxVersion: version }, () => {
        for (let at = 0; at < 20; at++) socket.write(wire.subarray(at, at + 1));
        socket.end(wire.subarray(20));
    });
    let heard = Buffer.alloc(0);
    socket.on('data', (data) => heard = Buffer.concat([heard, data]));
    socket.on('close', (hadError) => told([hadError, heard.equals(wire)].join(' ')));
    ";
    let chat = Server::start(&format!("chat {}", certificates.server_args("server")));
    let talk = r"
    const [ann, bob] = [0, 1].map(() => tls.connect({ ...trusting, maxVersion: version }));
    ann.write('/nick ann\n');
    let heard = '';
    ann.setEncoding('utf8').on('data', (text) => {
        heard += text;
        if (heard.includes('is now ann\n') && !bob.bytesWritten) bob.write('/nick bob\nhello ann\n/quit\n');
        if (heard.includes('bob left\n')) ann.end('/quit\n');
    });
    bob.resume();
    ann.on('close', (hadError) => told([hadError, heard.includes('bob: hello ann\n')].join(' ')));
    ";
    for version in ["TLSv1.2", "TLSv1.3"] {
        for (to, script) in [(frames.address, frame), (chat.address, talk)] {
            let words = [&to.port().to_string(), &certificates.path(""), version];
            assert_eq!(node(&format!("{TLS}{script}"), &words), "false true\n", "{version}");
        }
    }
}
