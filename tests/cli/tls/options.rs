//! Errors in options and files, and the load generator over TLS.

use super::Certificates;
use crate::server::{Server, exclusive, run, shared};

#[test]
fn errors_in_the_files_are_reported_in_one_line_before_serving() {
    let _others = shared();
    let certificates = Certificates::of("wrong-files");
    certificates.write("empty.pem", "");
    certificates.write("text.pem", "no certificate here\n");
    certificates.write("cut.pem", &certificates.text("server.pem")[..200]);
    let path = |file: &str| certificates.path(file);
    let (cert, key) = (path("server.pem"), path("server.key"));
    let belongs = format!(
        "cannot use the key in {}: it does not belong to the certificate in {cert}",
        path("other.key")
    );
    for (words, sentence) in [
        (format!("echo --tls-cert {cert} --tls-key {}", path("other.key")), belongs.as_str()),
        (format!("echo --tls-cert {} --tls-key {key}", path("none.pem")), "none.pem: no such file"),
        (format!("echo --tls-cert {cert} --tls-key {}", path("none.key")), "none.key: no such file"),
        (format!("echo --tls-cert {} --tls-key {key}", path("empty.pem")), "empty.pem: there is none"),
        (format!("echo --tls-cert {} --tls-key {key}", path("text.pem")), "text.pem: there is none"),
        (
            format!("echo --tls-cert {} --tls-key {key}", path("cut.pem")),
            "cut.pem: its -----END line is missing",
        ),
        (format!("echo --tls-cert {key} --tls-key {key}"), "server.key: there is none"),
        (format!("echo --tls-cert {cert} --tls-key {cert}"), "server.pem: there is none"),
        (
            format!("echo --tls-cert {cert} --tls-key {key} --tls-cert {cert}"),
            "--tls-cert and --tls-key go in pairs: 2 of the one and 1 of the other are given",
        ),
        (
            format!("chat --tls-cert {cert} --tls-key {key} --tls-client-ca {}", path("text.pem")),
            "text.pem: there is none",
        ),
        (format!("proxy --to a:1 --to-tls --to-tls-ca {}", path("none.pem")), "none.pem: no such file"),
        (format!("connect a:1 --tls --tls-ca {}", path("empty.pem")), "empty.pem: there is none"),
        (
            format!("connect a:1 --tls --tls-ca {cert} --tls-cert {cert} --tls-key {}", path("other.key")),
            belongs.as_str(),
        ),
    ] {
        let outcome = run(&words.split(' ').collect::<Vec<_>>(), b"");
        assert_eq!((outcome.code, outcome.stdout.len()), (Some(1), 0), "{words}: {}", outcome.stderr);
        assert!(outcome.stderr.starts_with("tidemill: "), "{words}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(sentence), "{words}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{words}: {}", outcome.stderr);
    }
}

#[test]
fn each_shape_of_load_is_carried_over_tls_and_nothing_fails() {
    let _quiet = exclusive();
    let certificates = Certificates::of("load");
    let echo = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let (to, ca) = (echo.address.to_string(), certificates.path("ca.pem"));
    for words in ["", "--pipeline 16", "--size 1MiB --connections 4", "--connections 300", "--shape churn"] {
        let mut all = vec![
            "load",
            "--tls",
            "--tls-ca",
            &ca,
            "--json",
            "--duration",
            "500ms",
            "--warm-up",
            "100ms",
            &to,
        ];
        all.extend(words.split_whitespace());
        let outcome = run(&all, b"");
        assert_eq!(outcome.code, Some(0), "{words}: {}", outcome.stderr);
        let output: serde_json::Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
        assert_eq!(output["failed"].as_f64(), Some(0.0), "{words}: {output}");
        assert!(output["count"].as_f64().is_some_and(|count| count > 5.0), "{words}: {output}");
    }
}

#[test]
fn an_untrusted_server_is_not_loaded_and_the_reason_is_printed() {
    let _others = shared();
    let certificates = Certificates::of("load-distrust");
    let echo = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let plain = Server::start("echo");
    let (strangers, none) = (certificates.path("stranger-ca.pem"), certificates.path("none.pem"));
    for (ca, to, why) in [
        (&strangers, &echo, "the peer's certificate is not trusted: unknown issuer"),
        (&strangers, &plain, "the peer does not speak TLS (it sent \"echo ser\")"),
        (&none, &echo, "none.pem: no such file"),
    ] {
        for shape in ["echo", "churn", "idle", "fan-out"] {
            let to = to.address.to_string();
            let outcome = run(&["load", "--tls", "--tls-ca", ca, "--shape", shape, &to], b"");
            assert_eq!(outcome.code, Some(1), "{shape}: {}", outcome.stderr);
            assert!(outcome.stderr.contains(why), "{shape}: {}", outcome.stderr);
            assert_eq!(outcome.stderr.lines().count(), 1, "{shape}: {}", outcome.stderr);
        }
    }
}
