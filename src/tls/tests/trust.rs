//! Who is believed, and what is said of those who are not.

use std::fs;

use rcgen::date_time_ymd;
use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::*;
use crate::tls::{Clients, Version, provider};

const WHOLE: Cut = Cut::Every(usize::MAX);

fn shaken(config: &Arc<ClientConfig>, name: &'static str, server: &Server) -> Pair {
    Pair::shaken(End::caller(config, name), End::server(server), WHOLE)
}

/// The certificate that the server has shown.
fn shown(pair: &Pair) -> Vec<u8> {
    pair.client.session.secured().peer_certificates[0].clone()
}

fn certificate(identity: &Identity) -> Vec<u8> {
    identity.certificate().to_vec()
}

#[test]
fn a_name_gets_the_identity_that_is_for_it() {
    let authority = Authority::new();
    let identities = [&["a.example", "127.0.0.1"][..], &["*.b.example"], &["c.example", "a.example"]];
    let identities: Vec<Identity> = identities.iter().map(|names| authority.identity(names)).collect();
    let options = ServerOptions { identities: identities.clone(), ..ServerOptions::default() };
    let server = Server::new(options).unwrap();
    let trust = ClientOptions { trust: Trust::AnyoneInsecurely, ..ClientOptions::default() };
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
            let pair = shaken(&config, name, &server);
            assert_eq!(shown(&pair), certificate(&identities[expected]), "{name}");
            let asked = (name != "127.0.0.1").then_some(name);
            for end in [&pair.client, &pair.server] {
                assert_eq!(end.session.secured().server_name.as_deref(), asked);
            }
        }
    }
}

#[test]
fn two_handshakes_at_once_keep_their_names_apart() {
    let authority = Authority::new();
    let server = authority.server();
    let config = config(ClientOptions { trust: Trust::AnyoneInsecurely, ..ClientOptions::default() }, &TLS13);
    let names = ["one.example", "two.example", "192.0.2.7"];
    let mut pairs = names.map(|name| Pair::new(End::caller(&config, name), End::server(&server), WHOLE));
    let hellos: Vec<Vec<u8>> = pairs.iter_mut().map(|pair| pair.client.hear(&[])).collect();
    for (pair, hello) in pairs.iter_mut().zip(&hellos) {
        pair.to_client = pair.server.hear(hello);
    }
    for (pair, name) in pairs.iter_mut().zip([Some(names[0]), Some(names[1]), None]) {
        pair.settle();
        assert_eq!(pair.server.session.secured().server_name.as_deref(), name);
    }
}

#[test]
fn the_second_session_is_resumed_and_still_knows_everything() {
    let authority = Authority::new();
    let clients = Authority::new();
    let serving = ServerOptions { clients: Clients::Required(clients.authorities()), ..authority.serving() };
    let server = Server::new(serving).unwrap();
    for version in BOTH {
        let mine = clients.identity(&["me"]);
        let options = ClientOptions { identity: Some(mine.clone()), ..authority.trusting() };
        let config = config(options, version);
        for round in 0..4 {
            let mut pair = shaken(&config, "a.example", &server);
            for end in [&pair.client, &pair.server] {
                let secured = end.session.secured();
                assert_eq!(secured.resumed, round > 0, "round {round}");
                assert_eq!(secured.server_name.as_deref(), Some("a.example"));
                assert_eq!(secured.peer_certificates.len(), 1);
            }
            assert_eq!(pair.server.session.secured().peer_certificates[0], certificate(&mine));
            assert_eq!(pair.ask(b"ping"), b"ping");
        }
        // What was agreed on before is not resumed under other rules.
        server
            .replace(ServerOptions {
                clients: Clients::Required(clients.authorities()),
                ..authority.serving()
            })
            .unwrap();
        assert!(!shaken(&config, "a.example", &server).server.session.secured().resumed);
    }
}

#[test]
fn a_protocol_is_agreed_on_or_the_client_is_refused() {
    let authority = Authority::new();
    let named = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>();
    let serving = ServerOptions { protocols: named(&["h2", "http/1.1"]), ..authority.serving() };
    let server = Server::new(serving).unwrap();
    let calling = |names| ClientOptions { protocols: named(names), ..authority.trusting() };
    for version in BOTH {
        let pair = shaken(&config(calling(&["http/1.1", "h2"]), version), "a.example", &server);
        for end in [&pair.client, &pair.server] {
            assert_eq!(
                end.session.secured().protocol.as_deref(),
                Some(&b"h2"[..]),
                "the server's order counts"
            );
        }
        let pair = shaken(&config(calling(&[]), version), "a.example", &server);
        assert!(pair.is_ready());
        assert_eq!(pair.server.session.secured().protocol, None);
        let pair = shaken(&config(calling(&["irc"]), version), "a.example", &server);
        assert_eq!(pair.server.broken(), "the peer offers no protocol that is spoken here (ALPN)");
        assert_eq!(pair.client.broken(), "the peer refused: no application protocol");
    }
    for wrong in [Vec::new(), vec![b'x'; 256]] {
        let error =
            Client::new(ClientOptions { protocols: vec![wrong], ..authority.trusting() }).unwrap_err();
        assert!(error.to_string().ends_with("use 1 to 255"), "{error}");
    }
}

#[test]
fn clients_are_asked_who_they_are() {
    let authority = Authority::new();
    let (friends, strangers) = (Authority::new(), Authority::new());
    let friendly = friends.authorities();
    for version in BOTH {
        for clients in [Clients::Optional(friendly.clone()), Clients::Required(friendly.clone())] {
            let is_required = matches!(clients, Clients::Required(_));
            let server = Server::new(ServerOptions { clients, ..authority.serving() }).unwrap();
            let come = |identity| {
                let options = ClientOptions { identity, ..authority.trusting() };
                shaken(&config(options, version), "a.example", &server)
            };
            let friend = friends.identity(&["friend"]);
            let pair = come(Some(friend.clone()));
            assert!(pair.is_ready(), "{}", pair.server.broken());
            assert_eq!(pair.server.session.secured().peer_certificates, [certificate(&friend)]);

            let pair = come(Some(strangers.identity(&["stranger"])));
            assert_eq!(pair.server.broken(), "the peer's certificate is not trusted: unknown issuer");
            assert_eq!(pair.client.broken(), "the peer refused: unknown CA");

            let pair = come(None);
            if is_required {
                assert_eq!(pair.server.broken(), "the peer has shown no certificate, and must");
                assert_eq!(pair.client.broken(), "the peer refused: certificate required");
            } else {
                assert!(pair.is_ready());
                assert!(pair.server.session.secured().peer_certificates.is_empty());
            }
        }
    }
}

#[test]
fn what_a_server_shows_can_be_replaced_while_old_sessions_go_on() {
    let authority = Authority::new();
    let [old, new] = [(); 2].map(|()| authority.identity(&["a.example"]));
    let showing = |identity: &Identity| ServerOptions {
        identities: vec![identity.clone()],
        ..ServerOptions::default()
    };
    let server = Server::new(showing(&old)).unwrap();
    let config = authority.config(&TLS13);
    let mut before = shaken(&config, "a.example", &server);
    let mut between =
        Pair::new(End::caller(&authority.config(&TLS13), "a.example"), End::server(&server), WHOLE);
    server.clone().replace(showing(&new)).unwrap();
    assert!(server.replace(ServerOptions::default()).is_err());
    let after = shaken(&config, "a.example", &server);
    assert_eq!(shown(&before), certificate(&old));
    assert_eq!(shown(&after), certificate(&new));
    assert_eq!(before.ask(b"still here"), b"still here");
    between.to_server = between.client.hear(&[]);
    between.settle();
    assert_eq!(shown(&between), certificate(&old));
    assert_eq!(server.security(), Security::from(&server.clone()), "it is one and the same");
}

#[test]
fn who_is_not_believed_is_told_why_and_so_is_the_log() {
    let authority = Authority::new();
    let server = |identity| {
        Server::new(ServerOptions { identities: vec![identity], ..ServerOptions::default() }).unwrap()
    };
    let over = authority.identity_but(&["a.example"], |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let early =
        authority.identity_but(&["a.example"], |params| params.not_before = date_time_ymd(4000, 1, 1));
    let nameless = authority.identity(&[]);
    let stranger = Authority::new().identity(&["a.example"]);
    let two = authority.identity(&["b.example", "192.0.2.7"]);
    let cases = [
        (stranger, "unknown issuer", "unknown CA"),
        (over, "expired ", "certificate expired"),
        (early, "not valid for another ", "certificate expired"),
        (two, "not valid for a.example (it is for b.example, 192.0.2.7)", "bad certificate"),
        (nameless, "not valid for a.example (it is for no name at all)", "bad certificate"),
    ];
    for (identity, why, told) in cases {
        for version in BOTH {
            let pair = shaken(&authority.config(version), "a.example", &server(identity.clone()));
            let beginning = format!("the peer's certificate is not trusted: {why}");
            assert!(pair.client.broken().starts_with(&beginning), "{}", pair.client.broken());
            assert_eq!(pair.server.broken(), format!("the peer refused: {told}"));
            assert!(!pair.client.last.ready);
        }
    }
}

#[test]
fn an_authority_itself_is_no_server() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["a.example".to_string()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let identity = Identity::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let server =
        Server::new(ServerOptions { identities: vec![identity], ..ServerOptions::default() }).unwrap();
    let trust = Trust::Only(Authorities::from_pem(pem.as_bytes()).unwrap());
    let pair =
        shaken(&config(ClientOptions { trust, ..ClientOptions::default() }, &TLS13), "a.example", &server);
    assert!(pair.client.broken().contains("it is an authority's own"), "{}", pair.client.broken());
}

/// Shows the certificate of one and signs with the key of another.
fn impostor(authority: &Authority) -> End {
    let shown = authority.identity(&["a.example"]).certified_key().cert.clone();
    let key = authority.identity(&["a.example"]).certified_key().key.clone();
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(shown, key));
    let config = builder.with_no_client_auth().with_cert_resolver(Arc::new(shown));
    End::new(Box::new(Session::server(Arc::new(config)).unwrap()))
}

#[test]
fn trusting_anyone_still_asks_for_the_key() {
    let authority = Authority::new();
    for version in BOTH {
        let anyone = ClientOptions { trust: Trust::AnyoneInsecurely, ..ClientOptions::default() };
        let pair = shaken(&config(anyone.clone(), version), "other.example", &authority.server());
        assert!(pair.is_ready(), "{}", pair.client.broken());
        let caller = End::caller(&config(anyone, version), "a.example");
        let pair = Pair::shaken(caller, impostor(&authority), WHOLE);
        assert!(!pair.is_ready());
        assert_eq!(pair.client.broken(), "the peer's certificate is not trusted: a signature is wrong");
    }
}

#[test]
fn a_server_may_ask_for_the_newest_version() {
    let authority = Authority::new();
    let server = Server::new(ServerOptions { oldest: Version::V13, ..authority.serving() }).unwrap();
    let pair = shaken(&authority.config(&TLS12), "a.example", &server);
    assert_eq!(pair.server.broken(), "the peer speaks no version of TLS that is spoken here");
    assert_eq!(pair.client.broken(), "the peer refused: protocol version");
    let client = Client::new(ClientOptions { oldest: Version::V13, ..authority.trusting() }).unwrap();
    let pair = Pair::shaken(End::client(&client, "a.example:443"), End::server(&server), WHOLE);
    assert!(pair.is_ready());
}

#[test]
fn the_name_is_that_of_the_dialed_host_or_the_given_one() {
    let authority = Authority::new();
    let identity = authority.identity(&["a.example", "127.0.0.1", "::1"]);
    let server =
        Server::new(ServerOptions { identities: vec![identity], ..ServerOptions::default() }).unwrap();
    let client = Client::new(authority.trusting()).unwrap();
    for to in ["a.example:443", "127.0.0.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443", "A.EXAMPLE:1"] {
        let pair = Pair::shaken(End::client(&client, to), End::server(&server), WHOLE);
        assert!(pair.is_ready(), "{to}: {}", pair.client.broken());
    }
    let pair = Pair::shaken(End::client(&client, "127.0.0.2:443"), End::server(&server), WHOLE);
    assert!(pair.client.broken().contains("not valid for 127.0.0.2 (it is for "), "{}", pair.client.broken());
    let error = client.security().filter(&address("unix:/x")).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "cannot dial unix:/x with TLS: it has no name to check (give one)");
    let error = client.security().filter(&address("a..b:1")).map(|_| ()).unwrap_err();
    let why = "cannot dial a..b:1 with TLS: no certificate can be for this name (give another one)";
    assert_eq!(error.to_string(), why);

    let named = ClientOptions { name: Some("a.example".into()), ..authority.trusting() };
    let client = Client::new(named).unwrap();
    let pair = Pair::shaken(End::client(&client, "unix:/x"), End::server(&server), WHOLE);
    assert!(pair.is_ready(), "{}", pair.client.broken());
    let error =
        Client::new(ClientOptions { name: Some("no name".into()), ..authority.trusting() }).unwrap_err();
    let why = "cannot expect a certificate for \"no name\": it is neither a name nor an IP address";
    assert_eq!(error.to_string(), why);
}

#[test]
fn what_is_wrong_with_an_identity_is_said_with_its_file() {
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
        let error = Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(why), "{error}");
    }
    let both = format!("{key}{certificate}{other_key}");
    assert!(Identity::from_pem(both.as_bytes(), both.as_bytes()).is_ok(), "the first key counts");
}

#[test]
fn identities_and_authorities_are_read_from_files() {
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
    let identity = Identity::from_pem_files(&certificate, &key);
    let authorities = Authorities::from_pem_file(&ca);
    let errors = [
        Identity::from_pem_files(folder.join("none.pem"), &key).unwrap_err(),
        Identity::from_pem_files(&certificate, file("other.pem", &authority.pem(&[]).1)).unwrap_err(),
        Authorities::from_pem_file(&key).unwrap_err(),
    ];
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(format!("{:?} {:?}", identity.unwrap(), authorities.unwrap()), "Identity Authorities(1)");
    let errors = errors.map(|error| error.to_string().replace(&format!("{}/", folder.display()), ""));
    assert_eq!(errors[0], "cannot read the certificate in none.pem: no such file or directory");
    assert_eq!(
        errors[1],
        "cannot use the key in other.pem: it does not belong to the certificate in cert.pem"
    );
    assert!(errors[2].starts_with("cannot use the certificate of an authority in key.pem: there is none "));
}

#[test]
fn a_server_without_an_identity_is_none() {
    let error = Server::new(ServerOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot serve TLS without a certificate: give at least one identity");
}

#[test]
fn whom_the_system_trusts_is_somebody_or_the_error_says_where_it_looked() {
    match Authorities::system() {
        Ok(authorities) => assert!(format!("{authorities:?}").starts_with("Authorities(")),
        Err(error) => assert!(error.to_string().contains("SSL_CERT_FILE"), "{error}"),
    }
}
