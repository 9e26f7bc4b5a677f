//! Which certificates are trusted, and the errors for those that are not.

use std::fs;

use rcgen::date_time_ymd;
use rustls::ServerConfig;
use rustls::sign::{self, SingleCertAndKey};

use super::*;
use crate::tls::{ClientAuth, TlsVersion, provider};

const WHOLE: Cut = Cut::Every(usize::MAX);

fn handshaken(config: &Arc<ClientConfig>, name: &'static str, server: &Server) -> Pair {
    Pair::handshaken(End::client_with(config, name), End::server(server), WHOLE)
}

/// The certificate that the server has sent.
fn server_certificate(pair: &Pair) -> Vec<u8> {
    pair.client.session.info().peer_certificates[0].clone()
}

fn certificate(identity: &CertifiedKey) -> Vec<u8> {
    identity.certificate().to_vec()
}

#[test]
fn a_server_name_selects_its_certificate() {
    let authority = Authority::new();
    let identities = [&["a.example", "127.0.0.1"][..], &["*.b.example"], &["c.example", "a.example"]];
    let identities: Vec<CertifiedKey> = identities.iter().map(|names| authority.certificate(names)).collect();
    let options = ServerOptions { certificates: identities.clone(), ..ServerOptions::default() };
    let server = Server::new(options).unwrap();
    let trust = ClientOptions { trust: Trust::DangerAcceptAny, ..ClientOptions::default() };
    for version in BOTH {
        let config = config(trust.clone(), version);
        let cases = [
            ("a.example", 0),
            ("x.b.example", 1),
            ("b.example", 0),
            ("c.example", 2),
            ("z.example", 0),
            ("127.0.0.1", 0),
        ];
        for (name, expected) in cases {
            let pair = handshaken(&config, name, &server);
            assert_eq!(server_certificate(&pair), certificate(&identities[expected]), "{name}");
            let sent = (name != "127.0.0.1").then_some(name);
            for end in [&pair.client, &pair.server] {
                assert_eq!(end.session.info().server_name.as_deref(), sent);
            }
        }
    }
}

#[test]
fn two_handshakes_at_once_keep_their_names_apart() {
    let authority = Authority::new();
    let server = authority.server();
    let config = config(ClientOptions { trust: Trust::DangerAcceptAny, ..ClientOptions::default() }, &TLS13);
    let names = ["one.example", "two.example", "192.0.2.7"];
    let mut pairs = names.map(|name| Pair::new(End::client_with(&config, name), End::server(&server), WHOLE));
    let hellos: Vec<Vec<u8>> = pairs.iter_mut().map(|pair| pair.client.receive(&[])).collect();
    for (pair, hello) in pairs.iter_mut().zip(&hellos) {
        pair.to_client = pair.server.receive(hello);
    }
    for (pair, name) in pairs.iter_mut().zip([Some(names[0]), Some(names[1]), None]) {
        pair.run_until_quiet();
        assert_eq!(pair.server.session.info().server_name.as_deref(), name);
    }
}

#[test]
fn the_second_session_is_resumed_with_all_results_of_the_first() {
    let authority = Authority::new();
    let clients = Authority::new();
    let serving = ServerOptions {
        client_auth: ClientAuth::Required(clients.root_certs()),
        ..authority.server_options()
    };
    let server = Server::new(serving).unwrap();
    for version in BOTH {
        let mine = clients.certificate(&["me"]);
        let options = ClientOptions { certificate: Some(mine.clone()), ..authority.client_options() };
        let config = config(options, version);
        for round in 0..4 {
            let mut pair = handshaken(&config, "a.example", &server);
            for end in [&pair.client, &pair.server] {
                let secured = end.session.info();
                assert_eq!(secured.resumed, round > 0, "round {round}");
                assert_eq!(secured.server_name.as_deref(), Some("a.example"));
                assert_eq!(secured.peer_certificates.len(), 1);
            }
            assert_eq!(pair.server.session.info().peer_certificates[0], certificate(&mine));
            assert_eq!(pair.client_sends(b"ping"), b"ping");
        }
        // A session of before is not resumed with other options.
        server
            .replace(ServerOptions {
                client_auth: ClientAuth::Required(clients.root_certs()),
                ..authority.server_options()
            })
            .unwrap();
        assert!(!handshaken(&config, "a.example", &server).server.session.info().resumed);
    }
}

#[test]
fn a_protocol_is_negotiated_or_the_client_is_refused() {
    let authority = Authority::new();
    let named = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>();
    let serving = ServerOptions { alpn: named(&["h2", "http/1.1"]), ..authority.server_options() };
    let server = Server::new(serving).unwrap();
    let calling = |names| ClientOptions { alpn: named(names), ..authority.client_options() };
    for version in BOTH {
        let pair = handshaken(&config(calling(&["http/1.1", "h2"]), version), "a.example", &server);
        for end in [&pair.client, &pair.server] {
            assert_eq!(end.session.info().protocol.as_deref(), Some(&b"h2"[..]), "the server's order counts");
        }
        let pair = handshaken(&config(calling(&[]), version), "a.example", &server);
        assert!(pair.is_ready());
        assert_eq!(pair.server.session.info().protocol, None);
        let pair = handshaken(&config(calling(&["irc"]), version), "a.example", &server);
        assert_eq!(pair.server.error(), "the peer offers no supported protocol (ALPN)");
        assert_eq!(pair.client.error(), "the peer refused: no application protocol");
    }
    for wrong in [Vec::new(), vec![b'x'; 256]] {
        let error =
            Client::new(ClientOptions { alpn: vec![wrong], ..authority.client_options() }).unwrap_err();
        assert!(error.to_string().ends_with("use 1 to 255"), "{error}");
    }
}

#[test]
fn a_client_certificate_is_requested_or_required() {
    let authority = Authority::new();
    let (friends, strangers) = (Authority::new(), Authority::new());
    let friendly = friends.root_certs();
    for version in BOTH {
        for clients in [ClientAuth::Optional(friendly.clone()), ClientAuth::Required(friendly.clone())] {
            let is_required = matches!(clients, ClientAuth::Required(_));
            let server =
                Server::new(ServerOptions { client_auth: clients, ..authority.server_options() }).unwrap();
            let come = |identity| {
                let options = ClientOptions { certificate: identity, ..authority.client_options() };
                handshaken(&config(options, version), "a.example", &server)
            };
            let friend = friends.certificate(&["friend"]);
            let pair = come(Some(friend.clone()));
            assert!(pair.is_ready(), "{}", pair.server.error());
            assert_eq!(pair.server.session.info().peer_certificates, [certificate(&friend)]);

            let pair = come(Some(strangers.certificate(&["stranger"])));
            assert_eq!(pair.server.error(), "the peer's certificate is not trusted: unknown issuer");
            assert_eq!(pair.client.error(), "the peer refused: unknown CA");

            let pair = come(None);
            if is_required {
                assert_eq!(pair.server.error(), "the peer sent no certificate, but one is required");
                assert_eq!(pair.client.error(), "the peer refused: certificate required");
            } else {
                assert!(pair.is_ready());
                assert!(pair.server.session.info().peer_certificates.is_empty());
            }
        }
    }
}

#[test]
fn certificates_can_be_replaced_while_old_sessions_continue() {
    let authority = Authority::new();
    let [old, new] = [(); 2].map(|()| authority.certificate(&["a.example"]));
    let showing = |identity: &CertifiedKey| ServerOptions {
        certificates: vec![identity.clone()],
        ..ServerOptions::default()
    };
    let server = Server::new(showing(&old)).unwrap();
    let config = authority.config(&TLS13);
    let mut before = handshaken(&config, "a.example", &server);
    let mut between =
        Pair::new(End::client_with(&authority.config(&TLS13), "a.example"), End::server(&server), WHOLE);
    server.clone().replace(showing(&new)).unwrap();
    assert!(server.replace(ServerOptions::default()).is_err());
    let after = handshaken(&config, "a.example", &server);
    assert_eq!(server_certificate(&before), certificate(&old));
    assert_eq!(server_certificate(&after), certificate(&new));
    assert_eq!(before.client_sends(b"still here"), b"still here");
    between.to_server = between.client.receive(&[]);
    between.run_until_quiet();
    assert_eq!(server_certificate(&between), certificate(&old));
    assert_eq!(server.filter_config(), FilterConfig::from(&server.clone()), "it is one and the same");
}

#[test]
fn an_untrusted_peer_gets_an_alert_and_the_error_names_the_reason() {
    let authority = Authority::new();
    let server = |identity| {
        Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() }).unwrap()
    };
    let over = authority.certificate_but(&["a.example"], |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let early =
        authority.certificate_but(&["a.example"], |params| params.not_before = date_time_ymd(4000, 1, 1));
    let nameless = authority.certificate(&[]);
    let stranger = Authority::new().certificate(&["a.example"]);
    let two = authority.certificate(&["b.example", "192.0.2.7"]);
    let cases = [
        (stranger, "unknown issuer", "unknown CA"),
        (over, "expired ", "certificate expired"),
        (early, "not valid for another ", "certificate expired"),
        (two, "not valid for a.example (it is for b.example, 192.0.2.7)", "bad certificate"),
        (nameless, "not valid for a.example (it is for no name)", "bad certificate"),
    ];
    for (identity, why, events) in cases {
        for version in BOTH {
            let pair = handshaken(&authority.config(version), "a.example", &server(identity.clone()));
            let beginning = format!("the peer's certificate is not trusted: {why}");
            assert!(pair.client.error().starts_with(&beginning), "{}", pair.client.error());
            assert_eq!(pair.server.error(), format!("the peer refused: {events}"));
            assert!(!pair.client.last.ready);
        }
    }
}

#[test]
fn a_ca_certificate_is_not_accepted_as_a_server_certificate() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["a.example".to_string()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let identity = CertifiedKey::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let server =
        Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() }).unwrap();
    let trust = Trust::Only(RootCerts::from_pem(pem.as_bytes()).unwrap());
    let pair = handshaken(
        &config(ClientOptions { trust, ..ClientOptions::default() }, &TLS13),
        "a.example",
        &server,
    );
    assert!(pair.client.error().contains("it is a CA certificate"), "{}", pair.client.error());
}

/// Sends one certificate and signs with the key of another.
fn impostor(authority: &Authority) -> End {
    let shown = authority.certificate(&["a.example"]).certified_key().cert.clone();
    let key = authority.certificate(&["a.example"]).certified_key().key.clone();
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let shown = SingleCertAndKey::from(sign::CertifiedKey::new(shown, key));
    let config = builder.with_no_client_auth().with_cert_resolver(Arc::new(shown));
    End::new(Box::new(Session::server(Arc::new(config)).unwrap()))
}

#[test]
fn accepting_any_certificate_still_checks_its_key() {
    let authority = Authority::new();
    for version in BOTH {
        let anyone = ClientOptions { trust: Trust::DangerAcceptAny, ..ClientOptions::default() };
        let pair = handshaken(&config(anyone.clone(), version), "other.example", &authority.server());
        assert!(pair.is_ready(), "{}", pair.client.error());
        let client = End::client_with(&config(anyone, version), "a.example");
        let pair = Pair::handshaken(client, impostor(&authority), WHOLE);
        assert!(!pair.is_ready());
        assert_eq!(pair.client.error(), "the peer's certificate is not trusted: a signature is invalid");
    }
}

#[test]
fn a_server_can_require_the_newest_version() {
    let authority = Authority::new();
    let server =
        Server::new(ServerOptions { min_version: TlsVersion::V13, ..authority.server_options() }).unwrap();
    let pair = handshaken(&authority.config(&TLS12), "a.example", &server);
    assert_eq!(pair.server.error(), "the peer supports no enabled TLS version");
    assert_eq!(pair.client.error(), "the peer refused: protocol version");
    let client =
        Client::new(ClientOptions { min_version: TlsVersion::V13, ..authority.client_options() }).unwrap();
    let pair = Pair::handshaken(End::client(&client, "a.example:443"), End::server(&server), WHOLE);
    assert!(pair.is_ready());
}

#[test]
fn the_verified_name_is_the_dialed_host_or_the_given_server_name() {
    let authority = Authority::new();
    let identity = authority.certificate(&["a.example", "127.0.0.1", "::1"]);
    let server =
        Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() }).unwrap();
    let client = Client::new(authority.client_options()).unwrap();
    for to in ["a.example:443", "127.0.0.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443", "A.EXAMPLE:1"] {
        let pair = Pair::handshaken(End::client(&client, to), End::server(&server), WHOLE);
        assert!(pair.is_ready(), "{to}: {}", pair.client.error());
    }
    let pair = Pair::handshaken(End::client(&client, "127.0.0.2:443"), End::server(&server), WHOLE);
    assert!(pair.client.error().contains("not valid for 127.0.0.2 (it is for "), "{}", pair.client.error());
    let error = client.filter_config().filter(&address("unix:/x")).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot dial unix:/x with TLS: it has no host name to verify (set a server name)"
    );
    let error = client.filter_config().filter(&address("a..b:1")).map(|_| ()).unwrap_err();
    let why = "cannot dial a..b:1 with TLS: no certificate can be for this name (set another server name)";
    assert_eq!(error.to_string(), why);

    let named = ClientOptions { server_name: Some("a.example".into()), ..authority.client_options() };
    let client = Client::new(named).unwrap();
    let pair = Pair::handshaken(End::client(&client, "unix:/x"), End::server(&server), WHOLE);
    assert!(pair.is_ready(), "{}", pair.client.error());
    let error =
        Client::new(ClientOptions { server_name: Some("no name".into()), ..authority.client_options() })
            .unwrap_err();
    let why = "cannot expect a certificate for \"no name\": it is neither a name nor an IP address";
    assert_eq!(error.to_string(), why);
}

#[test]
fn an_error_in_a_certificate_names_its_file() {
    let authority = Authority::new();
    let (certificate, key) = authority.pem(&["a.example"]);
    let (_, other_key) = authority.pem(&["a.example"]);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let older =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let odd = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cases = [
        (&certificate[..], &other_key[..], "cannot use the key: it does not belong to the certificate"),
        (&certificate, encrypted, "cannot use the key: it is encrypted "),
        (&certificate, older, "cannot use the key: it is encrypted "),
        (&certificate, odd, "cannot use the key: it is malformed, or of a kind that is not supported "),
        (&certificate, &certificate, "cannot use the key: there is none "),
        (&certificate, &key[..60], "cannot use the key: its -----END line is missing"),
        (&key, &key, "cannot use the certificate: there is none "),
        (bad, &key, "cannot use the certificate: it is malformed"),
        ("", "", "cannot use the certificate: there is none "),
    ];
    for (certificate, key, why) in cases {
        let error = CertifiedKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(why), "{error}");
    }
    let both = format!("{key}{certificate}{other_key}");
    assert!(CertifiedKey::from_pem(both.as_bytes(), both.as_bytes()).is_ok(), "the first key counts");
}

#[test]
fn certificates_and_root_certificates_are_read_from_files() {
    let authority = Authority::new();
    let (certificate, key) = authority.pem(&["a.example"]);
    let folder = std::env::temp_dir().join(format!("tidemill-tls-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let (certificate, key) = (file("cert.pem", &certificate), file("key.pem", &key));
    let ca = file("ca.pem", &authority.0.pem());
    let identity = CertifiedKey::from_pem_files(&certificate, &key);
    let authorities = RootCerts::from_pem_file(&ca);
    let errors = [
        CertifiedKey::from_pem_files(folder.join("none.pem"), &key).unwrap_err(),
        CertifiedKey::from_pem_files(&certificate, file("other.pem", &authority.pem(&[]).1)).unwrap_err(),
        RootCerts::from_pem_file(&key).unwrap_err(),
    ];
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(format!("{:?} {:?}", identity.unwrap(), authorities.unwrap()), "CertifiedKey RootCerts(1)");
    let errors = errors.map(|error| error.to_string().replace(&format!("{}/", folder.display()), ""));
    assert_eq!(errors[0], "cannot read the certificate in none.pem: no such file or directory");
    assert_eq!(
        errors[1],
        "cannot use the key in other.pem: it does not belong to the certificate in cert.pem"
    );
    assert!(errors[2].starts_with("cannot use the root certificate in key.pem: there is none "));
}

#[test]
fn a_server_without_a_certificate_is_an_error() {
    let error = Server::new(ServerOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot serve TLS without a certificate: give at least one");
}

#[test]
fn system_roots_are_found_or_the_error_names_the_places_searched() {
    match RootCerts::system() {
        Ok(authorities) => assert!(format!("{authorities:?}").starts_with("RootCerts(")),
        Err(error) => assert!(error.to_string().contains("SSL_CERT_FILE"), "{error}"),
    }
}
