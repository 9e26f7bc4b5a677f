//! What an installation needs beside the binary, made from the options themselves: completions for shells, man pages.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::{Arg, CommandFactory};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use crate::args::{Cli, CommandError};

/// Prints the completions for a shell. A closed pipe is the decision of its reader.
pub fn completions(shell: Shell) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidemill", &mut script);
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&script).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CommandError::Run(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes `tidemill.1` and a page for each command, such as `tidemill-proxy.1`.
pub fn man_pages(dir: &Path) -> Result<(), CommandError> {
    // The long version names the machine that it runs on, which is not that of the reader.
    let mut root = Cli::command().disable_help_subcommand(true).long_version(None).max_term_width(usize::MAX);
    root.build();
    let failed = |path: &Path, error| CommandError::Run(format!("man page {}: {error}", path.display()));
    fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    let commands: Vec<clap::Command> = root.get_subcommands().cloned().collect();
    for command in commands.into_iter().chain([root]) {
        let path = dir.join(format!("{}.1", name(&command)));
        page(command).and_then(|page| fs::write(&path, page)).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// The name of a page, such as `tidemill-proxy`.
fn name(command: &clap::Command) -> String {
    command.get_display_name().unwrap_or(command.get_name()).to_string()
}

fn page(mut command: clap::Command) -> io::Result<Vec<u8>> {
    // All options in the synopsis would fill a screen.
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_string();
    let notes = notes(&command);
    // A remark behind the name of a heading stands in the notes. Options that only `--help` lists would have no text.
    let command = command.override_usage(usage).mut_args(|option| {
        let heading = option.get_help_heading().map(|heading| split(heading).0.to_string());
        let option = option.hide_short_help(false);
        if let Some(heading) = heading { option.help_heading(heading) } else { option }
    });
    let is_root = command.has_subcommands();
    let man = Man::new(command).source(concat!("tidemill ", env!("CARGO_PKG_VERSION"))).manual("tidemill");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if is_root {
        man.render_subcommands_section(&mut page)?;
    }
    let mut roff = Roff::default();
    roff.control("SH", ["NOTES"]);
    for note in notes {
        roff.text([roman(note)]);
        roff.control("br", []);
    }
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// A heading of the help as its name and the remark behind it in parentheses.
fn split(heading: &str) -> (&str, Option<&str>) {
    match heading.split_once(" (") {
        Some((name, remark)) => (name, Some(remark.trim_end_matches(')'))),
        None => (heading, None),
    }
}

/// The remarks of headings, and what stands behind the options in the help.
fn notes(command: &clap::Command) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for heading in command.get_arguments().filter_map(Arg::get_help_heading) {
        if let (name, Some(remark)) = split(heading) {
            let note = format!("{name}: {remark}.");
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    notes.extend(after.lines().map(str::to_string));
    notes
}
