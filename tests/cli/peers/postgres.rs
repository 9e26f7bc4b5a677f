//! PostgreSQL behind the proxy: queries, a benchmark, a dump.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Folder, free_port, program, start};
use crate::server::{Outcome, Server, complete, shared};

/// The programs of the newest PostgreSQL. Debian keeps those of the server outside of PATH.
fn tool(name: &str) -> Option<PathBuf> {
    let mut versions: Vec<String> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").display().to_string()))
        .collect();
    versions.sort();
    versions.reverse();
    let found = program(name, &versions.iter().map(String::as_str).collect::<Vec<_>>());
    let required = std::env::var("TIDEMILL_INTEROP").is_ok_and(|how| how == "required");
    assert!(found.is_some() || !required, "{name} of PostgreSQL is not installed");
    if found.is_none() {
        println!("skipped: {name} of PostgreSQL is not installed");
    }
    found
}

/// Runs a program of the server, which refuses to run as root: then it runs as `nobody`.
fn unprivileged(program: &PathBuf) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
    command
}

#[track_caller]
fn succeeds(mut command: Command, stdin: &[u8]) -> Outcome {
    command.env("PGSSLMODE", "disable").env("PGUSER", "tide").env("PGDATABASE", "postgres");
    let outcome = complete(command, stdin);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    outcome
}

#[test]
fn psql_pgbench_and_a_dump_work_through_the_proxy() {
    let _others = shared();
    let names = ["initdb", "postgres", "psql", "pgbench", "pg_dump"];
    let tools: Vec<PathBuf> = names.iter().filter_map(|name| tool(name)).collect();
    let [initdb, postgres, psql, pgbench, pg_dump] = &tools[..] else { return };
    let (folder, port) = (Folder::new("postgres"), free_port());
    let mut command = Command::new("chmod");
    command.args(["777", &folder.path("")]);
    succeeds(command, b"");
    let data = folder.path("data");
    let mut command = unprivileged(initdb);
    command.args(["-D", &data, "-U", "tide", "--auth=trust", "--no-sync", "--locale=C", "-E", "UTF8"]);
    succeeds(command, b"");
    let mut command = unprivileged(postgres);
    command
        .args(["-D", &data, "-p", &port.to_string(), "-h", "127.0.0.1", "-k", "", "-F"])
        .stderr(Stdio::null());
    let _postgres = start(command, port);
    let proxy = Server::start(&format!("proxy --to 127.0.0.1:{port}"));
    let own = proxy.address.port().to_string();
    let client = |tool: &PathBuf, words: &[&str]| {
        let mut command = Command::new(tool);
        command.args(["-h", "127.0.0.1", "-p", &own]).args(words);
        command
    };
    let ask = |query: &str| {
        let outcome = succeeds(client(psql, &["-X", "-q", "-A", "-t", "-c", query]), b"");
        String::from_utf8(outcome.stdout).expect("text").trim().to_string()
    };
    // The server starts to accept before it is ready.
    crate::server::until("it answers", super::SOON, || {
        let mut command = client(psql, &["-X", "-q", "-c", "select 1"]);
        command.env("PGSSLMODE", "disable").env("PGUSER", "tide").env("PGDATABASE", "postgres");
        complete(command, b"").code == Some(0)
    });
    assert_eq!(ask("select 6 * 7"), "42");
    succeeds(client(pgbench, &["-i", "-q", "-s", "1"]), b"");
    let bench = succeeds(client(pgbench, &["-S", "-n", "-c", "8", "-t", "100"]), b"");
    let text = String::from_utf8(bench.stdout).expect("text");
    assert!(text.contains("number of transactions actually processed: 800/800"), "{text}");
    assert!(text.contains("number of failed transactions: 0"), "{text}");
    // A dump of 100,000 rows and its restoration: both ends through the proxy.
    let sum = "select count(*) || ' ' || md5(string_agg(a::text, ',' order by aid)) from pgbench_accounts a";
    let before = ask(sum);
    assert!(before.starts_with("100000 "), "{before}");
    let dump = succeeds(client(pg_dump, &["-t", "pgbench_accounts"]), b"").stdout;
    ask("drop table pgbench_accounts");
    succeeds(client(psql, &["-X", "-q", "-v", "ON_ERROR_STOP=1"]), &dump);
    assert_eq!(ask(sum), before);
}
