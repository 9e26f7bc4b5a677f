//! The options `--allow` and `--deny`, whose order among each other matters.

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use tidemill::{Action, IpRange, RangeError, RefuseMode, Rule, Rules};

/// The access rules, as they were given.
#[derive(Clone, Debug, Default)]
pub struct AccessArgs {
    pub rules: Rules,
}

/// A rule as it stands behind one of the two options.
#[derive(Clone, Copy, Debug)]
struct RuleArg {
    range: IpRange,
    how: RefuseMode,
}

/// The heading of these options.
pub const ACCESS_HEADING: &str = "Access (addresses in no rule are allowed, unless the last rule is --allow)";

fn parse_rule(text: &str) -> Result<RuleArg, String> {
    let (range, how) = match text.split_once('=') {
        Some((range, how)) => (range, how.parse()?),
        None => (text, RefuseMode::End),
    };
    Ok(RuleArg { range: range.parse().map_err(|error: RangeError| error.reason().to_string())?, how })
}

fn parse_allow(text: &str) -> Result<RuleArg, String> {
    if text.contains('=') {
        return Err("only --deny has a way to refuse".to_string());
    }
    parse_rule(text)
}

fn option(name: &'static str, value: &'static str, help: &'static str, parser: ValueParser) -> Arg {
    let option = Arg::new(name).long(name).value_name(value).help(help).help_heading(ACCESS_HEADING);
    option.action(ArgAction::Append).value_parser(parser)
}

impl AccessArgs {
    /// A rule that can never decide is a mistake, and may open the server to all addresses: so it is an error.
    pub fn check(&self) -> Result<(), String> {
        let rules: Vec<&Rule> = self.rules.iter().collect();
        for (n, rule) in rules.iter().enumerate() {
            if let Some(first) = rules[..n].iter().find(|first| first.range.covers(&rule.range)) {
                let option = |rule: &Rule| if rule.action == Action::Allow { "--allow" } else { "--deny" };
                return Err(format!(
                    "{} {} has no effect: {} {} before it matches the same addresses, and the first match decides",
                    option(rule),
                    rule.range,
                    option(first),
                    first.range
                ));
            }
        }
        Ok(())
    }
}

impl Args for AccessArgs {
    fn augment_args(command: Command) -> Command {
        command
            .arg(option(
                "allow",
                "RANGE",
                "Accept 10.0.0.0/8, 10.0.0.7 or 10.0.0.1-10.0.0.9; repeatable, the first rule that matches decides",
                ValueParser::new(parse_allow),
            ))
            .arg(option(
                "deny",
                "RANGE[=HOW]",
                "Refuse with a FIN, =reply (--busy-reply first), =reset or =tarpit (held silently for 30s)",
                ValueParser::new(parse_rule),
            ))
    }

    fn augment_args_for_update(command: Command) -> Command {
        AccessArgs::augment_args(command)
    }
}

impl FromArgMatches for AccessArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<AccessArgs, clap::Error> {
        let mut who = AccessArgs::default();
        who.update_from_arg_matches(matches)?;
        Ok(who)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let of = |name: &'static str| {
            let places = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<RuleArg>(name).into_iter().flatten();
            places.zip(values).map(move |(place, given)| (place, name, *given))
        };
        let mut all: Vec<(usize, &str, RuleArg)> = of("allow").chain(of("deny")).collect();
        all.sort_by_key(|(place, ..)| *place);
        for (_, name, RuleArg { range, how }) in all {
            match name {
                "allow" => self.rules.allow(range),
                _ => self.rules.deny(range, how),
            }
        }
        Ok(())
    }
}
