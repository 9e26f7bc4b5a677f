#!/usr/bin/env bash
# Builds the Debian package: needs `cargo install cargo-deb --locked`. The package is in target/debian/.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build --release --locked --features cli
tidemill=target/release/tidemill
mkdir -p target/deb/completions
$tidemill man target/deb/man
$tidemill completions bash >target/deb/completions/tidemill
$tidemill completions zsh >target/deb/completions/_tidemill
$tidemill completions fish >target/deb/completions/tidemill.fish
cargo deb --no-build --locked "$@"
