//! What a distribution installs beside the binary: the unit for systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::interop::has;
use crate::server::{TIDEMILL, shared};

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/packaging/tidemill@.service")
}

#[test]
fn the_unit_is_valid_and_its_exposure_is_at_most_two() {
    let _others = shared();
    if !has("systemd-analyze") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("tidemill-unit-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let text = fs::read_to_string(unit()).expect("the unit").replace("%i", "echo");
    let file = folder.join("tidemill-echo.service");
    fs::write(&file, text.replace("/usr/bin/tidemill", TIDEMILL)).expect("a file");
    let analyze = |words: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(words).arg(&file).stdin(Stdio::null()).output().expect("systemd-analyze");
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
