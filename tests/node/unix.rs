//! U: Unix-domain sockets. Three scenarios.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use tidemill::{Address, CloseReason, ListenOptions};

use crate::fixture::{Event, Fixture};

/// A folder for this test, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("tidemill-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn u1_a_path_can_be_listened_on_and_dialed_and_its_file_is_removed_with_the_listener() {
    let folder = Folder::new("u1");
    let path = folder.0.join("app.sock");
    let mut fixture = Fixture::new().on_data(|socket, input| {
        if socket.origin() == tidemill::Origin::Accepted {
            socket.send(input.take_all());
        }
    });
    let listener = fixture.reactor.listen(path.as_path(), fixture.service).expect("a listener");
    assert_eq!(fixture.reactor.local_addr(listener), Some(Address::Unix(path.clone())));
    let id = fixture.dial(format!("unix:{}", path.display()));
    fixture.until("it is connected", |fixture| fixture.count(Event::Connected(id)) == 1);
    assert_eq!(fixture.with_socket_of(id, |socket| socket.peer_addr()), Address::Unix(path.clone()));
    let accepted = fixture.opened().into_iter().find(|&other| other != id).expect("the other end");
    assert_eq!(fixture.with_socket_of(accepted, |socket| socket.peer_addr()), Address::Unnamed);
    fixture.with_socket_of(id, |socket| {
        socket.send(vec![7; 300_000]);
        socket.finish();
    });
    assert_eq!(fixture.until_closed(id), CloseReason::Finished);
    assert_eq!(fixture.closed_info(id).bytes_in, 300_000);
    assert!(path.exists());
    fixture.reactor.close_listener(listener);
    assert!(!path.exists(), "the file is removed");
    // An abstract name has no file at all.
    let name = format!("unix:@tidemill-u1-{}", std::process::id());
    fixture.reactor.listen(&name, fixture.service).expect("a listener");
    let id = fixture.dial(&name);
    fixture.until("it is connected", |fixture| fixture.count(Event::Connected(id)) == 1);
}

#[test]
fn u2_a_stale_file_is_replaced_and_nothing_else_is() {
    let folder = Folder::new("u2");
    let path = folder.0.join("app.sock");
    let mut fixture = Fixture::new();
    // A socket file as a killed server leaves it.
    drop(UnixListener::bind(&path).expect("a listener"));
    let listener = fixture.reactor.listen(path.as_path(), fixture.service).expect("no process listens there");
    let mut other = Fixture::new();
    let error = other.reactor.listen(path.as_path(), other.service).expect_err("we do");
    assert_eq!(
        (error.kind(), error.to_string()),
        (
            ErrorKind::AddrInUse,
            format!("cannot listen on unix:{}: another process listens there", path.display())
        )
    );
    // A file that another server has replaced is not removed.
    std::fs::remove_file(&path).expect("it is there");
    let other = UnixListener::bind(&path).expect("a listener");
    fixture.reactor.close_listener(listener);
    assert!(path.exists());
    // The file of an adopted listener is not removed.
    let adopted =
        fixture.reactor.adopt(other, fixture.service, &ListenOptions::default()).expect("it is adopted");
    let _caller = UnixStream::connect(&path).expect("a connection");
    fixture.until("it is accepted", |fixture| fixture.opened().len() == 1);
    fixture.reactor.close_listener(adopted);
    assert!(path.exists());
}

#[test]
fn u3_the_ways_to_fail_are_distinguished_and_a_long_path_is_not_cut() {
    let folder = Folder::new("u3");
    let mut fixture = Fixture::new();
    let file = folder.0.join("file");
    std::fs::write(&file, "text").expect("a file");
    let mut fails = |path: PathBuf| {
        let id = fixture.dial(path.as_path());
        fixture.until_closed(id);
        fixture.dial_error(id).replace(&*folder.0.to_string_lossy(), "DIR")
    };
    assert_eq!(fails(folder.0.join("none")), "cannot connect to unix:DIR/none: no such file or directory");
    assert_eq!(fails(file), "cannot connect to unix:DIR/file: connection refused");
    let long = format!("unix:/tmp/{}", "x".repeat(200));
    let error = fixture.reactor.listen(&long, fixture.service).expect_err("it is too long");
    assert!(
        error.kind() == ErrorKind::InvalidInput && error.to_string().contains("at most 107 bytes"),
        "{error}"
    );
    let path = PathBuf::from(&long["unix:".len()..]);
    let error = fixture.reactor.listen(path.as_path(), fixture.service).expect_err("it is too long");
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("too long"), "{error}");
    assert!(!std::path::Path::new(&long["unix:".len()..][..107]).exists());
}
