//! What a distribution installs beside the binary: the unit for systemd, and what the Debian package has.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::interop::has;
use crate::server::{TIDEMILL, run, shared};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn unit(kind: &str) -> String {
    fs::read_to_string(root().join(format!("docs/packaging/tidemill@.{kind}"))).expect("the unit")
}

/// The unit of an instance, with the binary under test.
fn instance(kind: &str) -> String {
    unit(kind).replace("%i", "echo").replace("/usr/bin/tidemill", TIDEMILL)
}

#[test]
fn the_units_are_valid_and_the_services_exposure_is_at_most_two() {
    let _others = shared();
    if !has("systemd-analyze") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("tidemill-unit-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("tidemill-echo.service");
    fs::write(&file, instance("service")).expect("a file");
    let socket = folder.join("tidemill-echo.socket");
    fs::write(&socket, instance("socket")).expect("a file");
    let analyze = |words: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        let files = [&file, &socket];
        let files = if words[0] == "verify" { &files[..] } else { &files[..1] };
        let output = command.args(words).args(files).stdin(Stdio::null()).output().expect("systemd-analyze");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said)
    };
    let (is_valid, said) = analyze(&["verify", "--man=no"]);
    assert!(is_valid && said.is_empty(), "{said}");
    let (_, said) = analyze(&["security", "--offline=true"]);
    let level =
        said.lines().find_map(|line| line.split_once("Overall exposure level for tidemill-echo.service: "));
    let level = level.and_then(|(_, level)| level.split(' ').next()?.parse::<f64>().ok());
    assert!(level.is_some_and(|level| level <= 2.0), "{level:?}: {said}");
    // It is in the folder for temporary files.
    let _ = fs::remove_dir_all(&folder);
}

/// The assets of the Debian package: from where, and to which folder or file.
fn assets() -> Vec<(String, String)> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("it");
    let package = manifest.split("[package.metadata.deb]\n").nth(1).expect("the package").to_string();
    let lines = package.lines().filter(|line| line.starts_with("    [\""));
    let pairs = lines.map(|line| {
        let mut texts = line.split('"').skip(1).step_by(2);
        (texts.next().expect("from").to_string(), texts.next().expect("to").to_string())
    });
    pairs.collect()
}

#[test]
fn the_debian_package_has_the_files_that_it_names_and_the_unit_starts_its_binary() {
    let _others = shared();
    let assets = assets();
    assert!(assets.len() > 10, "{assets:?}");
    for (from, _) in assets.iter().filter(|(from, _)| !from.starts_with("target/")) {
        assert!(root().join(from).is_file(), "{from}");
    }
    // What the binary makes is made by the script that builds the package.
    let script = fs::read_to_string(root().join("docs/packaging/deb.sh")).expect("it");
    for (from, _) in assets.iter().filter(|(from, _)| from.starts_with("target/deb/")) {
        assert!(script.contains(from.trim_end_matches("/*.1")), "{from}");
    }
    let (_, folder) = assets.iter().find(|(from, _)| from == "target/release/tidemill").expect("the binary");
    assert!(unit("service").contains(&format!("\nExecStart=/{folder}tidemill %i")), "{folder}");
    let example = root().join("docs/packaging/proxy.toml").display().to_string();
    let checked = run(&["proxy", "--check", "--config", &example], b"");
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(assets.iter().any(|(from, _)| from == licence), "{licence}");
    }
}
