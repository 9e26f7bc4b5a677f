//! Help and error messages of the command line.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::peer::Peer;
use crate::server::{Server, TIDEMILL, run, shared};

/// After a wrong option: one sentence that names it, and exit code 2.
#[test]
fn bad_options_get_one_clear_sentence_and_exit_2() {
    let _others = shared();
    let wrong: &[(&str, &str)] = &[
        ("echo --listen nowhere", "'nowhere' for '--listen <ADDR>': a port is missing, as in :9001"),
        ("echo --listen 9001", "a host is missing; write 127.0.0.1:9001, or [::]:9001 for all addresses"),
        ("echo --listen :9001", "a host is missing; write 127.0.0.1:9001"),
        (
            "echo --memory 2KiB --high-water 1 --max-queued 1",
            "a message may be 8.0 KiB, which does not fit into --memory of 2.0 KiB; raise --memory",
        ),
        ("echo --listen 127.0.0.1:99999", "a port is at most 65535"),
        ("echo --listen ::1:9001", "write IPv6 in brackets, as in [::1]:9001"),
        ("echo --listen unix:", "a path is missing, as in unix:/run/app.sock"),
        ("echo --deny 10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("echo --deny 10.0.0.0/8=shout", "choose reply, end, reset or tarpit"),
        ("echo --allow 10.0.0.0/8=reply", "only --deny has a way to refuse"),
        ("echo --accept-rate 0", "0 is not in 1.."),
        ("echo --rate 0KiB", "at least 1 byte is needed"),
        ("proxy", "--to <ADDR>"),
        ("proxy --to nowhere", "a port is missing"),
        ("proxy --to a:1 --proxy-protocol-out v3", "'v3' for '--proxy-protocol-out <VERSION>'"),
        ("proxy --to a:1 --proxy-protocol-in 10.0.0.9-10.0.0.1", "it ends before it begins"),
        ("proxy --to a:1 --connect-timeout 0", "--connect-timeout cannot be 0"),
        ("connect a:1 --framing line --crlf", "cannot be used with"),
        ("echo --idle-timeout 30", "a time is written as 500ms, 30s or 5min, or 0"),
        ("echo --idle-timeout 30x", "a time is written as"),
        ("echo --idle-timeout -1s", "unexpected argument '-1'"),
        ("echo --max-lifetime 11years", "ten years are the longest"),
        ("echo --memory 1zb", "a size is written as 512, 64KiB or 1MiB"),
        ("echo --memory 0", "at least 1 byte is needed"),
        ("echo --memory 9999999TiB", "no machine has so much memory"),
        ("echo --min-rate 3", "a rate is written as 1KiB/10s, or 0 for no limit"),
        ("echo --min-rate 1KiB/0s", "the time of a rate cannot be 0"),
        ("echo --max-connections 0", "0 is not in 1.."),
        ("echo --backlog 65536", "65536 is not in 1..=65535"),
        ("echo --overflow maybe", "'maybe' for '--overflow <HOW>'"),
        ("echo --high-water 2MiB", "--high-water of 2.0 MiB is more than --max-queued of 1.0 MiB"),
        ("echo --max-queued 65MiB", "--max-queued of 65.0 MiB is more than --memory of 64.0 MiB"),
        ("frames --max-message 64MiB", "does not fit into --memory of 64.0 MiB"),
        ("frames --framing u23", "\"u23\" is not a framing; choose one of u8, u16be"),
        ("frames --framing fixed:0", "is not a framing"),
        (
            "frames --framing fixed:8 --max-message 1KiB",
            "--max-message is for framings whose messages differ",
        ),
        ("echo --max-message 1KiB", "unexpected argument '--max-message'"),
        ("ecko", "unrecognized subcommand 'ecko'; a similar subcommand exists: 'echo'; see"),
        (
            "echo --lisen :1",
            "unexpected argument '--lisen' found; a similar argument exists: '--listen'; see",
        ),
        ("echo --idle-timeout 5M", "M could be minutes or months: write 5min, or 150d"),
        ("echo --memory 64K", "K could be 1000 or 1024 to a step: write KiB (1024) or KB (1000)"),
        ("echo --memory 1m", "m could be 1000 or 1024 to a step: write MiB"),
        ("echo --keep-alive 10h", "'10h' for '--keep-alive <TIME>': the kernel allows at most 32767s"),
        ("echo --listen a:1 --listen unix:/tmp/x --backlog 1 --backlog 2", "cannot be used multiple times"),
        ("echo --tls-min 1.3", "--tls-cert"),
        ("echo --tls-min 1.1", "'1.1' for '--tls-min <VERSION>'"),
        ("echo --tls-cert c.pem", "--tls-key <FILE>"),
        ("echo --tls-key c.key", "--tls-cert <FILE>"),
        ("echo --tls-client-ca ca.pem", "--tls-cert <FILE>"),
        ("echo --tls-cert c.pem --tls-key c.key --tls-client-optional", "--tls-client-ca <FILE>"),
        ("echo --tls-alpn tide", "--tls-cert <FILE>"),
        ("echo --max-handshakes 0", "0 is not in 1.."),
        ("echo --handshake-timeout 10", "a time is written as"),
        ("connect a:1 --insecure", "--tls"),
        ("load a:1 --insecure", "--tls"),
        ("connect a:1 --tls-ca ca.pem", "--tls"),
        ("connect a:1 --tls --insecure --tls-ca ca.pem", "cannot be used with"),
        ("connect a:1 --tls --tls-cert c.pem", "--tls-key <FILE>"),
        ("connect a:1 --hex --raw", "cannot be used with"),
        ("proxy --to a:1 --insecure", "--to-tls"),
        ("proxy --to a:1 --to-tls-ca ca.pem", "--to-tls"),
        ("proxy --to a:1 --to-tls --to-tls-ca ca.pem --insecure", "cannot be used with"),
        ("proxy --to a:1 --max-connections 1", "a proxied connection takes two of --max-connections"),
        ("proxy --to a:1 --on-reset hide", "'hide' for '--on-reset <HOW>'"),
        ("proxy --route sni=a.example", "an upstream is missing, as in sni=a.example:10.0.0.7:443"),
        ("proxy --route a.example:b:1", "a route begins with sni=NAME or alpn=PROTOCOL"),
        ("proxy --route sni=10.0.0.7:b:1", "is an address, and clients send names only"),
        ("proxy --route sni=a.*.b:b:1", "is no host name: write a.example or *.example"),
        ("proxy --route alpn=:b:1", "has 1 to 255 bytes"),
        ("proxy --route sni=a:b:1,backup", "a route has one upstream, so weight and backup have no effect"),
        (
            "proxy --route sni=*.a:b:1 --route sni=c.a:d:1",
            "--route sni=c.a:d:1 has no effect: sni=*.a before it matches the same clients",
        ),
        ("proxy --route alpn=h2:b:1 --route alpn=h2:d:1", "--route alpn=h2:d:1 has no effect"),
        ("proxy --route sni=a:b:1 --to-tls", "--to <ADDR>"),
        ("proxy --route sni=a:b:1 --check-every 1s", "--to <ADDR>"),
        ("proxy --route sni=a:b:1 --balance least-connections", "--to <ADDR>"),
        ("proxy --route sni=a:b:1 --tls-cert c.pem --tls-key c.key", "--tls-cert has no effect without --to"),
        ("echo --handshake-timeout 1s", "--tls-cert"),
        ("echo --max-handshakes 3", "--tls-cert"),
        ("echo --splices 9", "--splices has no effect here"),
        ("frames --framing u8 --max-message 1MiB", "the length of this framing is at most 255"),
        ("frames --framing u16be --max-message 1MiB", "the length of this framing is at most 65535"),
        ("echo --first-byte-timeout 1h --idle-timeout 1s", "--first-byte-timeout 1h has no effect"),
        ("echo --dry-run", "--dry-run has no effect without"),
        (
            "echo --allow 127.0.0.0/8 --deny 127.0.0.1",
            "--deny 127.0.0.1 has no effect: --allow 127.0.0.0/8 before it matches",
        ),
        ("proxy --to a:1,weight=0", "\"weight=0\": a number from 1 to 1000000 is needed"),
        ("proxy --to a:1,heavy", "after a comma stands weight=N, max=N or backup"),
        ("proxy --to a:1 --balance random", "'random' for '--balance <HOW>'"),
        ("load a:1 --duration 0", "--duration cannot be 0"),
        ("load a:1 --rate 0", "a rate lies above 0"),
        ("load a:1 --rate fast", "a rate is a number a second, as in 1000 or 0.5"),
        ("load a:1 --requests 5 --shape idle", "--requests is for messages"),
        ("load a:1 --requests 5 --warm-up 1s", "--warm-up cannot be used with --requests"),
        ("load a:1 --send x", "--send needs to know where an answer ends"),
        ("load a:1 --expect x", "give the message with --send"),
        ("load a:1 --send x --expect /(/", "no regular expression: unclosed group"),
        ("load a:1 --send \\q --expect x", "escapes are"),
        ("load a:1 --send @/nowhere --expect x", "cannot read /nowhere: No such file"),
        ("load a:1 --send x --expect y --greeting", "--greeting needs to know where an answer ends"),
        ("load a:1 --protocol http --shape fan-out", "are for --shape echo and churn"),
        ("load a:1 --source-ports 10.0.0.9-10.0.0.1", "the range ends before it begins"),
        ("load http://127.0.0.1:9111/", "this is a URL; write HOST:PORT, here 127.0.0.1:9111"),
        ("connect [fe80::1%nowhere0]:80", "there is no network interface nowhere0"),
        ("load a:1 --shape square", "'square' for '--shape <SHAPE>'"),
        ("load a:1 --rate 5 --pipeline 2", "--pipeline is for messages whose answers are waited for"),
        ("connect", "<ADDR>"),
        ("connect localhost", "a port is missing, as in :9001"),
    ];
    for (words, sentence) in wrong {
        let outcome = run(&words.split(' ').collect::<Vec<_>>(), b"");
        assert_eq!(outcome.code, Some(2), "{words}: {}", outcome.stderr);
        assert!(outcome.stdout.is_empty(), "{words}");
        assert!(outcome.stderr.contains(sentence), "{words}: {}", outcome.stderr);
        assert!(outcome.stderr.starts_with("tidemill: "), "{words}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{words}: {}", outcome.stderr);
    }
}

/// The options of a command by its long help: the name, and the kind of its value if it has one.
fn options_of(command: &str) -> Vec<(String, Option<String>, bool)> {
    let help = String::from_utf8(run(&[command, "--help"], b"").stdout).expect("text");
    let lines: Vec<&str> = help.lines().collect();
    let option = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().take(2).position(|word| word.starts_with("--"))?;
        let short = at == 0 || words[0].starts_with('-') && words[0].len() == 3;
        let kind = words.get(at + 1).and_then(|kind| kind.strip_prefix('<')?.split('>').next());
        short.then(|| (words[at].to_string(), kind.map(str::to_string)))
    };
    let mut found: Vec<(String, Option<String>, bool)> = Vec::new();
    for line in lines {
        // Descriptions are indented further.
        match option(line).filter(|_| line.len() - line.trim_start().len() <= 6) {
            Some((name, kind)) => found.push((name, kind, line.contains("repeatable"))),
            None if line.contains("repeatable") => found.last_mut().expect("an option").2 = true,
            None => {}
        }
    }
    found
}

/// Each option of each command, from its help: a wrong value, a misspelt name and a second value are refused, each by
/// one sentence and exit code 2.
#[test]
fn every_option_refuses_a_wrong_value_a_misspelt_name_and_a_second_value() {
    let _others = shared();
    // Where a command would start nevertheless, it fails with another exit code.
    let commands = [
        "echo --listen 192.0.2.1:1",
        "chat --listen 192.0.2.1:1",
        "frames --listen 192.0.2.1:1",
        "proxy --to 127.0.0.1:1 --listen 192.0.2.1:1",
        "connect 127.0.0.1:1",
        "load 127.0.0.1:1",
    ];
    let refused = |words: &str, sentence: &str| {
        let outcome = run(&words.split(' ').collect::<Vec<_>>(), b"");
        assert_eq!((outcome.code, outcome.stdout.len()), (Some(2), 0), "{words}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(sentence), "{words}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{words}: {}", outcome.stderr);
    };
    let (mut values, mut twice) = (0, 0);
    for start in commands {
        let command = start.split(' ').next().expect("a word");
        let options = options_of(command);
        assert!(options.len() > 15, "{command}: {options:?}");
        for (name, kind, repeatable) in options {
            refused(&format!("{start} {name}x"), &format!("unexpected argument '{name}x' found"));
            let second = match kind.as_deref() {
                Some("TIME") => "1s",
                Some("N") => "5",
                Some("SIZE") => "64KiB",
                _ => "",
            };
            if !repeatable && !second.is_empty() {
                twice += 1;
                refused(&format!("{start} {name} {second} {name} {second}"), "cannot be used multiple times");
            }
            // Of these kinds any text may be right; a wrong URL is not repeated, because a password may be in it.
            let free = [
                "COMMAND",
                "FILE",
                "KEY",
                "NAME",
                "TEXT",
                "TEXT|@FILE",
                "TEXT|/RE/",
                "DELIM",
                "FILE.svg",
                "URL",
            ];
            if let Some(kind) = kind.filter(|kind| !free.contains(&kind.as_str())) {
                values += 1;
                refused(&format!("{start} {name} !"), &format!("'!' for '{name} <{kind}>'"));
            }
        }
    }
    assert!(values > 100 && twice > 80, "{values} values and {twice} options were tried");
}

#[test]
fn without_a_command_the_help_is_shown() {
    let _others = shared();
    let outcome = run(&[], b"");
    assert_eq!(outcome.code, Some(2));
    for command in ["echo", "chat", "frames", "proxy", "connect", "load"] {
        assert!(outcome.stderr.contains(command), "{}", outcome.stderr);
    }
}

#[test]
fn help_names_every_option_with_its_default_and_fits_a_terminal() {
    let _others = shared();
    let served = [
        ("--listen", "127.0.0.1:9001"),
        ("--backlog", "1024"),
        ("--max-connections", "10000, or what the descriptors allow"),
        ("--overflow", "refuse"),
        ("--busy-reply", "\"server busy\", proxy: empty"),
        ("--max-per-ip", "0, proxy: 100"),
        ("--idle-timeout", "60s, chat: 30min, proxy: 1h"),
        ("--first-byte-timeout", "0"),
        ("--min-rate", "1KiB/10s"),
        ("--half-closed-timeout", "60s"),
        ("--max-lifetime", "0"),
        ("--keep-alive", "0"),
        ("--drain", "10s"),
        ("--high-water", "64KiB"),
        ("--max-queued", "1MiB, chat: 256KiB"),
        ("--memory", "64MiB"),
        ("--busy-poll", "0"),
    ];
    for command in ["echo", "chat", "frames", "proxy", "connect", "load"] {
        for columns in [80, 100] {
            let mut tidemill = Command::new(TIDEMILL);
            let help = tidemill
                .args([command, "--help"])
                .env("COLUMNS", columns.to_string())
                .output()
                .expect("help");
            assert_eq!(help.status.code(), Some(0));
            let help = String::from_utf8(help.stdout).expect("text");
            assert!(
                help.lines().all(|line| line.chars().count() <= columns),
                "{command} at {columns}\n{help}"
            );
            assert!(help.contains("Example: "), "{command}\n{help}");
            let flowing = help.split_whitespace().collect::<Vec<_>>().join(" ");
            for (option, default) in served.iter().filter(|_| !["connect", "load"].contains(&command)) {
                let text = flowing.split(&format!(" {option} ")).nth(1).expect(option);
                let text = text.split(" --").next().expect("its line");
                assert!(text.contains(&format!("[default: {default}]")), "{option}: {text}");
            }
        }
    }
}

#[test]
fn a_closed_pipe_after_help_is_no_error() {
    let _others = shared();
    let mut child =
        Command::new(TIDEMILL).args(["chat", "--help"]).stdout(Stdio::piped()).spawn().expect("help");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("its end").code(), Some(0));
}

#[test]
fn a_port_in_use_is_named_and_exits_1() {
    let _others = shared();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let outcome = run(&["chat", "--listen", &address], b"");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stdout.is_empty());
    let sent = outcome.stderr.lines().last().expect("a sentence");
    assert!(
        sent.starts_with(&format!("tidemill: cannot listen on {address}: the address is in use")),
        "{sent}"
    );
}

#[test]
fn one_service_listens_on_several_addresses() {
    let _others = shared();
    let server = Server::start("chat --listen 127.0.0.1:0 --listen [::1]:0");
    assert_eq!(server.addresses.len(), 2);
    assert!(server.addresses[0].is_ipv4() && server.addresses[1].is_ipv6());
    // Members on both listeners are in one room.
    let mut four = Peer::connect(server.addresses[0]);
    let joined = format!("{} joined\n", four.0.local_addr().expect("an address"));
    assert_eq!(four.receive(joined.len()), joined.as_bytes());
    let six = Peer::connect(server.addresses[1]);
    let joined = format!("{} joined\n", six.0.local_addr().expect("an address"));
    assert_eq!(four.receive(joined.len()), joined.as_bytes());
}
