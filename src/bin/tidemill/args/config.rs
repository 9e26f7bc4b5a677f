//! `--config`: options from a file. They become arguments in front of those of the command line, before clap parses
//! any: so ranges, conflicts, defaults and messages are the same for both.
//!
//! ```text
//! tidemill echo --config e.toml --raw   +   idle-timeout = "5min"      line 1
//!                                           deny = ["10.0.0.9"]        line 2
//!
//!  ─▶ tidemill echo --idle-timeout=5min --deny=10.0.0.9 --config e.toml --raw
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, Args, Command, CommandFactory};
use toml::de::{DeTable, DeValue};

use super::Cli;

const CONFIG: &str = "Configuration";

#[derive(Args)]
pub struct ConfigArgs {
    /// Read options from a TOML file, with the names they have here, as in: idle-timeout = "5min". An option that is
    /// given here, too, counts, and not the file's. SIGHUP reads the file again
    #[arg(long, value_name = "FILE", help_heading = CONFIG)]
    config: Option<PathBuf>,
    /// Check the options and the files that they name, then exit: 0 if they are right
    #[arg(long, help_heading = CONFIG, hide_short_help = true)]
    pub check: bool,
}

/// Options that have no meaning in a file.
const NOT_IN_A_FILE: [&str; 3] = ["config", "check", "help"];

/// What stands for an option in the file: none for a switch.
type Value = Option<String>;

/// An option as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    name: String,
    value: Value,
    line: usize,
}

/// The arguments of a command, those of its file included.
#[derive(Clone, Default)]
pub struct Arguments {
    /// As the process was started.
    given: Vec<OsString>,
    /// As clap is to parse them.
    pub words: Vec<OsString>,
    /// Where the file is, if there is one.
    pub path: Option<PathBuf>,
    entries: Vec<Entry>,
    /// Values that were set since: they count before all others.
    set: BTreeMap<String, String>,
}

impl Arguments {
    /// Reads the file that the arguments name, if they do.
    ///
    /// # Errors
    ///
    /// One line for a person, which names the file and, if it can be read, the line and the option.
    pub fn read(given: Vec<OsString>) -> Result<Arguments, String> {
        Arguments { given, ..Arguments::default() }.read_again(None)
    }

    /// Reads the file again. `set` is an option with its new value, which counts from now on.
    pub fn read_again(&self, set: Option<(&str, &str)>) -> Result<Arguments, String> {
        let mut new = Arguments { given: self.given.clone(), set: self.set.clone(), ..Arguments::default() };
        new.set.extend(set.map(|(name, value)| (name.to_string(), value.to_string())));
        let root = Cli::command();
        let asked = new.given.get(1).and_then(|word| word.to_str());
        let command = asked.and_then(|name| root.find_subcommand(name)).filter(|command| has_config(command));
        let Some(command) = command else {
            new.words.clone_from(&new.given);
            return Ok(new);
        };
        let own = without(&new.given[2..], command, &new.set);
        new.path = path_in(&own);
        if let Some(path) = &new.path {
            new.entries = read_file(path, command)?;
        }
        let from_file = new.entries.iter().filter(|entry| {
            let is_rule = RULES.contains(&&*entry.name);
            let is_same = |name: &str| name == entry.name || (is_rule && RULES.contains(&name));
            !new.set.contains_key(&entry.name) && !own.iter().filter_map(name_of).any(is_same)
        });
        let mut words: Vec<OsString> = new.given[..2].to_vec();
        words.extend(from_file.map(|entry| word(&entry.name, entry.value.as_deref())));
        words.extend(own);
        words.extend(new.set.iter().filter_map(|(name, value)| match (is_switch(command, name), &**value) {
            (true, "true") => Some(word(name, None)),
            (true, "false") => None,
            _ => Some(word(name, Some(value))),
        }));
        new.words = words;
        Ok(new)
    }

    /// A sentence with the file and the line in front, if it names an option that is from the file.
    pub fn place(&self, sentence: &str) -> String {
        let Some(path) = &self.path else { return sentence.to_string() };
        let place = |entry: &&Entry| place_of(&format!("--{}", entry.name), sentence);
        let mut named: Vec<&Entry> = self.entries.iter().filter(|entry| place(entry).is_some()).collect();
        named.sort_by_key(place);
        let has_value = |entry: &&&Entry| {
            entry.value.as_ref().is_some_and(|value| sentence.contains(&format!("'{value}'")))
        };
        match named.iter().find(has_value).or(named.first()) {
            Some(entry) => format!("{}:{}: {sentence}", path.display(), entry.line),
            None => sentence.to_string(),
        }
    }

    /// The names of options that differ between the two, in alphabetical order.
    pub fn changed_since(&self, before: &Arguments) -> Vec<String> {
        let (old, new) = (before.by_name(), self.by_name());
        let mut names: Vec<String> =
            old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)).cloned().collect();
        names.sort();
        names.dedup();
        names
    }

    fn by_name(&self) -> BTreeMap<String, Vec<Value>> {
        let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for entry in &self.entries {
            all.entry(entry.name.clone()).or_default().push(entry.value.clone());
        }
        all.extend(self.set.iter().map(|(name, value)| (name.clone(), vec![Some(value.clone())])));
        all
    }
}

/// Options whose order among each other matters: if one is on the command line, the file has no say in both.
pub const RULES: [&str; 2] = ["allow", "deny"];

fn has_config(command: &Command) -> bool {
    command.get_arguments().any(|option| option.get_long() == Some("config"))
}

fn is_switch(command: &Command, name: &str) -> bool {
    let option = command.get_arguments().find(|option| option.get_long() == Some(name));
    option.is_some_and(|option| matches!(option.get_action(), ArgAction::SetTrue))
}

/// The name of an option in a word such as `--name` or `--name=value`.
fn name_of(word: &OsString) -> Option<&str> {
    let rest = word.as_bytes().strip_prefix(b"--")?;
    let name = rest.split(|byte| *byte == b'=').next()?;
    std::str::from_utf8(name).ok().filter(|name| !name.is_empty())
}

fn word(name: &str, value: Option<&str>) -> OsString {
    value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}")).into()
}

/// The words of a command line without those options.
fn without(words: &[OsString], command: &Command, names: &BTreeMap<String, String>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match name_of(word).filter(|name| names.contains_key(*name)) {
            None => kept.push(word.clone()),
            // Its value is the next word.
            Some(name) if !word.as_bytes().contains(&b'=') && !is_switch(command, name) => drop(words.next()),
            Some(_) => {}
        }
    }
    kept
}

/// The value of `--config`. clap says so if there are two.
fn path_in(words: &[OsString]) -> Option<PathBuf> {
    let place = words.iter().position(|word| name_of(word) == Some("config"))?;
    match words[place].as_bytes().strip_prefix(b"--config=") {
        Some(path) => Some(OsString::from_vec(path.to_vec()).into()),
        None => words.get(place + 1).map(PathBuf::from),
    }
}

/// Where a sentence has this option, and not only a longer one.
fn place_of(option: &str, sentence: &str) -> Option<usize> {
    let ends = |rest: &str| !rest.starts_with(|c: char| c == '-' || c.is_ascii_alphanumeric());
    sentence.match_indices(option).map(|(at, _)| at).find(|at| ends(&sentence[at + option.len()..]))
}

fn read_file(path: &Path, command: &Command) -> Result<Vec<Entry>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("--config {}: {error}", path.display()))?;
    let line_of = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    let at = |offset: usize, what: &str| format!("{}:{}: {what}", path.display(), line_of(offset));
    let table = DeTable::parse(&text).map_err(|error| {
        let first = error.message().lines().next().unwrap_or("not TOML");
        at(error.span().map_or(0, |span| span.start), first)
    })?;
    let mut keys: Vec<_> = table.get_ref().iter().collect();
    keys.sort_by_key(|(key, _)| key.span().start);
    let mut entries = Vec::new();
    for (key, value) in keys {
        let (name, start) = (key.get_ref(), key.span().start);
        let values = values(command, name, value.get_ref()).map_err(|what| at(start, &what))?;
        let lines = values.into_iter().map(|(value, offset)| (value, line_of(offset.unwrap_or(start))));
        entries.extend(lines.map(|(value, line)| Entry { name: name.to_string(), value, line }));
    }
    Ok(entries)
}

/// What stands for an option, and where each value begins if it is in a list.
fn values(command: &Command, name: &str, value: &DeValue<'_>) -> Result<Vec<(Value, Option<usize>)>, String> {
    let is_known = command.get_arguments().any(|option| option.get_long() == Some(name));
    if !is_known || NOT_IN_A_FILE.contains(&name) {
        return Err(format!("'{name}' is no option that a file can have{}", similar(command, name)));
    }
    match (value, is_switch(command, name)) {
        (DeValue::Boolean(on), true) => Ok(if *on { vec![(None, None)] } else { Vec::new() }),
        (_, true) => Err(format!("{name} is true or false")),
        (DeValue::Array(items), false) if items.is_empty() => {
            Err(format!("{name}: an empty list has no meaning; leave {name} out"))
        }
        (DeValue::Array(items), false) => {
            items.iter().map(|item| Ok((scalar(name, item.get_ref())?, Some(item.span().start)))).collect()
        }
        (value, false) => Ok(vec![(scalar(name, value)?, None)]),
    }
}

fn scalar(name: &str, value: &DeValue<'_>) -> Result<Value, String> {
    match value {
        DeValue::String(text) => Ok(Some(text.to_string())),
        DeValue::Integer(number) => Ok(Some(number.to_string())),
        DeValue::Float(number) => Ok(Some(number.to_string())),
        other => Err(format!("{name} takes a text or a number; this is of type {}", other.type_str())),
    }
}

/// The option that was meant, if clap finds a similar one.
fn similar(command: &Command, name: &str) -> String {
    let name = name.trim_start_matches('-').replace('_', "-").to_lowercase();
    let hint = |name: &str| format!("; did you mean '{name}'?");
    let known = |option: &clap::Arg| option.get_long() == Some(&name);
    if NOT_IN_A_FILE.contains(&&*name) {
        return String::new();
    }
    if command.get_arguments().any(known) {
        return hint(&name);
    }
    let words = ["tidemill", command.get_name(), &format!("--{name}")].map(str::to_string);
    let error = Cli::command().try_get_matches_from(words).err();
    match error.as_ref().and_then(|error| error.get(ContextKind::SuggestedArg)) {
        Some(ContextValue::String(option)) => hint(option.trim_start_matches('-')),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    /// The arguments of a command line with a file of this text.
    fn read(name: &str, file: &str, text: &str) -> Result<Arguments, String> {
        let path = std::env::temp_dir().join(format!("tidemill-config-{}-{name}.toml", std::process::id()));
        fs::write(&path, file).expect("a file");
        let arguments = Arguments::read(words(&text.replace("FILE", &path.display().to_string())));
        // It is in the folder for temporary files.
        let _ = fs::remove_file(&path);
        arguments.map_err(|error| error.replace(&path.display().to_string(), "FILE"))
    }

    /// Without the path of the file.
    fn text(arguments: &Arguments) -> String {
        let words = arguments.words.iter().map(|word| word.to_string_lossy().into_owned());
        words.filter(|word| !word.contains("tidemill-config")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_of_a_file_stand_in_front_and_those_of_the_command_line_replace_them() {
        let file = "idle-timeout = \"5min\"\nmax-connections = 1_000\nraw = true\ndry-run = false\n\
                    listen = [\"[::1]:0\", \"127.0.0.1:0\"]\n";
        let all = "tidemill echo --idle-timeout=5min --max-connections=1000 --raw --listen=[::1]:0 \
                   --listen=127.0.0.1:0 --config";
        assert_eq!(text(&read("all", file, "tidemill echo --config FILE").unwrap()), all);
        let some = "tidemill echo --idle-timeout=5min --raw --config --max-connections 7 --listen=[::]:1";
        let given = "tidemill echo --config FILE --max-connections 7 --listen=[::]:1";
        assert_eq!(text(&read("some", file, given).unwrap()), some);
        // An order of rules that is half the file's and half the command line's would be that of neither.
        let rules = "deny = \"10.0.0.9\"\nallow = \"10.0.0.0/8\"\n";
        let given = "tidemill echo --config=FILE --deny 10.0.0.7";
        assert_eq!(text(&read("rules", rules, given).unwrap()), "tidemill echo --deny 10.0.0.7");
        let order = "tidemill echo --deny=10.0.0.9 --allow=10.0.0.0/8";
        assert_eq!(text(&read("order", rules, "tidemill echo --config=FILE").unwrap()), order);
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_option() {
        for (file, error) in [
            ("idle-timeout = \"5min\"\nlisten = [", "FILE:2: "),
            (
                "\n\nlisen = \":1\"",
                "FILE:3: 'lisen' is no option that a file can have; did you mean 'listen'?",
            ),
            ("max_connections = 5", "; did you mean 'max-connections'?"),
            ("--raw = true", "; did you mean 'raw'?"),
            ("[echo]\nraw = true", "FILE:1: 'echo' is no option"),
            ("config = \"x\"", "FILE:1: 'config' is no option that a file can have"),
            ("raw = 1", "FILE:1: raw is true or false"),
            ("\nlisten = []", "FILE:2: listen: an empty list has no meaning"),
            ("rate = true", "FILE:1: rate takes a text or a number; this is of type boolean"),
            ("rate = [[1]]", "FILE:1: rate takes a text or a number; this is of type array"),
        ] {
            let said = read("errors", file, "tidemill echo --config FILE").err().unwrap_or_default();
            assert!(said.contains(error), "{file:?}: {said}");
        }
        assert!(Arguments::read(words("tidemill echo --config /nonexistent/x")).is_err());
        // clap says that no command of that kind has the option.
        assert_eq!(
            text(&Arguments::read(words("tidemill load --config x")).unwrap()),
            "tidemill load --config x"
        );
    }

    #[test]
    fn a_sentence_about_an_option_of_the_file_gets_its_line_that_of_the_value_in_a_list() {
        let file = "rate = 5\nlisten = [\n  \"a:1\",\n  \"nowhere\",\n]\n";
        let arguments = read("place", file, "tidemill echo --config FILE --max-queued 1").unwrap();
        let place = |sentence: &str| {
            let placed = arguments.place(sentence);
            placed.strip_suffix(sentence).unwrap().rsplit_once(".toml").map(|(_, line)| line.to_string())
        };
        assert_eq!(place("invalid value 'nowhere' for '--listen <ADDR>'").as_deref(), Some(":4: "));
        assert_eq!(place("--rate is wrong").as_deref(), Some(":1: "));
        assert_eq!(
            place("--listen and --rate exclude each other").as_deref(),
            Some(":3: "),
            "the first of both"
        );
        assert_eq!(place("--rates, --rate-x and --max-queued are wrong"), None);
    }

    #[test]
    fn a_value_that_was_set_replaces_all_others_and_changes_are_named() {
        let file = "idle-timeout = \"5min\"\n";
        let given = "tidemill echo --config FILE --max-per-ip 7 --dry-run --rate=9";
        let before = read("set", file, given).unwrap();
        let path = before.path.clone().unwrap();
        fs::write(&path, "idle-timeout = \"6min\"\nmin-rate = 0\n").unwrap();
        let after = before.read_again(Some(("max-per-ip", "8"))).unwrap();
        let expected =
            "tidemill echo --idle-timeout=6min --min-rate=0 --config --dry-run --rate=9 --max-per-ip=8";
        assert_eq!(text(&after), expected);
        assert_eq!(after.changed_since(&before), ["idle-timeout", "max-per-ip", "min-rate"]);
        let again = after.read_again(Some(("rate", "1"))).unwrap();
        assert!(text(&again).ends_with("--config --dry-run --max-per-ip=8 --rate=1"), "{}", text(&again));
        assert_eq!(again.changed_since(&after), ["rate"]);
        // It is in the folder for temporary files.
        let _ = fs::remove_file(path);
    }
}
