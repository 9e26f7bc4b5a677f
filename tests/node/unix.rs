//! U: Unix-domain sockets. Three scenarios.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use tidemill::{Address, Closed, ListenOptions};

use crate::desk::{Desk, Told};

/// A folder of this test's own, gone with it.
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
fn u1_a_path_can_be_listened_on_and_dialed_and_its_file_goes_with_the_listener() {
    let folder = Folder::new("u1");
    let path = folder.0.join("app.sock");
    let mut desk = Desk::new().on_data(|socket, input| {
        if socket.origin() == tidemill::Origin::Accepted {
            socket.send(input.take_all());
        }
    });
    let listener = desk.reactor.listen(path.as_path(), desk.service).expect("a listener");
    assert_eq!(desk.reactor.local_addr(listener), Some(Address::Unix(path.clone())));
    let id = desk.dial(format!("unix:{}", path.display()));
    desk.until("it is connected", |desk| desk.told(Told::Connected(id)) == 1);
    assert_eq!(desk.with_socket_of(id, |socket| socket.peer_addr()), Address::Unix(path.clone()));
    let accepted = desk.opened().into_iter().find(|&other| other != id).expect("the other end");
    assert_eq!(desk.with_socket_of(accepted, |socket| socket.peer_addr()), Address::Unnamed);
    desk.with_socket_of(id, |socket| {
        socket.send(&vec![7; 300_000]);
        socket.finish();
    });
    assert_eq!(desk.until_closed(id), Closed::Finished);
    assert_eq!(desk.departed(id).bytes_in, 300_000);
    assert!(path.exists());
    desk.reactor.close_listener(listener);
    assert!(!path.exists(), "the file is removed");
    // An abstract name has no file at all.
    let name = format!("unix:@tidemill-u1-{}", std::process::id());
    desk.reactor.listen(&name, desk.service).expect("a listener");
    let id = desk.dial(&name);
    desk.until("it is connected", |desk| desk.told(Told::Connected(id)) == 1);
}

#[test]
fn u2_a_stale_file_is_replaced_and_nothing_else_is() {
    let folder = Folder::new("u2");
    let path = folder.0.join("app.sock");
    let mut desk = Desk::new();
    // What a server that was killed leaves behind.
    drop(UnixListener::bind(&path).expect("a listener"));
    let listener = desk.reactor.listen(path.as_path(), desk.service).expect("nobody answers there");
    let error = Desk::new().reactor.listen(path.as_path(), desk.service).expect_err("we do");
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::AddrInUse, format!("cannot listen on unix:{}: somebody listens there", path.display()))
    );
    // A file that has been replaced by another's is not ours to remove.
    std::fs::remove_file(&path).expect("it is there");
    let other = UnixListener::bind(&path).expect("a listener");
    desk.reactor.close_listener(listener);
    assert!(path.exists());
    // One that was made elsewhere is removed by whoever made it.
    let adopted = desk.reactor.adopt(other, desk.service, &ListenOptions::default()).expect("it is adopted");
    let _caller = UnixStream::connect(&path).expect("a connection");
    desk.until("it is let in", |desk| desk.opened().len() == 1);
    desk.reactor.close_listener(adopted);
    assert!(path.exists());
}

#[test]
fn u3_the_ways_to_fail_are_told_apart_and_a_long_path_is_not_cut() {
    let folder = Folder::new("u3");
    let mut desk = Desk::new();
    let file = folder.0.join("file");
    std::fs::write(&file, "text").expect("a file");
    let mut fails = |path: PathBuf| {
        let id = desk.dial(path.as_path());
        desk.until_closed(id);
        desk.failure(id).replace(&*folder.0.to_string_lossy(), "DIR")
    };
    assert_eq!(fails(folder.0.join("none")), "cannot connect to unix:DIR/none: no such file or directory");
    assert_eq!(fails(file), "cannot connect to unix:DIR/file: connection refused");
    let long = format!("unix:/tmp/{}", "x".repeat(200));
    let error = desk.reactor.listen(&long, desk.service).expect_err("it is too long");
    assert!(
        error.kind() == ErrorKind::InvalidInput && error.to_string().contains("at most 107 bytes"),
        "{error}"
    );
    let path = PathBuf::from(&long["unix:".len()..]);
    let error = desk.reactor.listen(path.as_path(), desk.service).expect_err("it is too long");
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("too long"), "{error}");
    assert!(!std::path::Path::new(&long["unix:".len()..][..107]).exists());
}
