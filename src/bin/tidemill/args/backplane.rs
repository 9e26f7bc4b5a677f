//! The options of `chat --backplane`.

use clap::Args;
use tidemill::Address;
use tidemill::tls::Client;

use super::CommandError;
use super::tls::{BackplaneTlsArgs, UpstreamTlsArgs};
use crate::backplane::{Broker, NAME_MAX, is_name};

pub(super) const BACKPLANE: &str = "Several processes";

/// The rooms of several processes as one.
#[derive(Args)]
pub struct BackplaneArgs {
    /// Make one room of all chats that name this Redis or Valkey, as redis://[USER:PASSWORD@]HOST[:PORT][/DB], or
    /// rediss:// for TLS. While it is away, each process goes on by itself, and its lines wait
    #[arg(long, value_name = "URL", help_heading = BACKPLANE)]
    backplane: Option<String>,
    /// The key of the stream: processes with the same one are one room
    #[arg(long, value_name = "KEY", default_value = "tidemill:chat", help_heading = BACKPLANE, requires = "backplane",
          hide_short_help = true)]
    backplane_stream: String,
    /// Name of this process, which others see behind the names of its members, as in ada@NAME [default: a random one]
    #[arg(long, value_name = "NAME", help_heading = BACKPLANE, requires = "backplane", value_parser = name,
          hide_short_help = true)]
    backplane_name: Option<String>,
    #[command(flatten)]
    tls: BackplaneTlsArgs,
}

fn name(text: &str) -> Result<String, String> {
    match is_name(text) {
        true => Ok(text.to_string()),
        false => Err(format!("a name has 1 to {NAME_MAX} letters, digits, '-', '_' and '.'")),
    }
}

/// The parts of a URL.
#[derive(Debug, PartialEq)]
struct Url {
    is_tls: bool,
    credentials: Option<(String, String)>,
    address: Address,
    database: u32,
}

/// What is wrong with a URL. The URL is not repeated, because a password may be in it.
fn parse(url: &str) -> Result<Url, String> {
    let (is_tls, rest) = match url.split_once("://") {
        Some(("redis", rest)) => (false, rest),
        Some(("rediss", rest)) => (true, rest),
        _ => return Err("it begins with redis:// or rediss://".to_string()),
    };
    let (credentials, rest) = match rest.rsplit_once('@') {
        Some((before, rest)) => (Some(before), rest),
        None => (None, rest),
    };
    let credentials = credentials.map(|text| {
        let (user, password) = text.split_once(':').ok_or("before @ is USER:PASSWORD, or :PASSWORD")?;
        Ok::<_, String>((decoded(user)?, decoded(password)?))
    });
    let (host, database) = rest.split_once('/').unwrap_or((rest, ""));
    let database = match database {
        "" => 0,
        number => number.parse().map_err(|_| format!("{number:?} is not the number of a database"))?,
    };
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let address = if has_port { host.to_string() } else { format!("{host}:6379") };
    let address: Address = address.parse().map_err(|error: tidemill::AddressError| error.to_string())?;
    Ok(Url { is_tls, credentials: credentials.transpose()?, address, database })
}

/// Without percent-encoding, which a password needs for `@`, `/` and `%`.
fn decoded(text: &str) -> Result<String, String> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or("a % is written as %25")?);
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_string())
}

/// The broker that the URL of an option names, and its side of TLS.
///
/// # Errors
///
/// One line for a person, without the password.
pub(super) fn broker(
    option: &str,
    url: &str,
    tls: &UpstreamTlsArgs,
) -> Result<(Broker, Option<Client>), CommandError> {
    let url =
        parse(url).map_err(|why| CommandError::Usage(format!("the URL of {option} is wrong: {why}")))?;
    let tls = if url.is_tls { tls.client().map_err(CommandError::Run)? } else { None };
    let filter = tls.as_ref().map(Client::filter_config);
    let (credentials, database) = (url.credentials, url.database);
    Ok((Broker { address: url.address, credentials, database, filter }, tls))
}

impl BackplaneArgs {
    /// The broker, if one was asked for, and its side of TLS.
    ///
    /// # Errors
    ///
    /// One line for a person, without the password.
    pub fn broker(&self) -> Result<Option<(Broker, Option<Client>)>, CommandError> {
        let Some(url) = &self.backplane else { return Ok(None) };
        let (broker, tls) = broker("--backplane", url, &self.upstream_tls())?;
        if self.tls.is_given() && tls.is_none() {
            let what = "the TLS options of --backplane have no effect without rediss://";
            return Err(CommandError::Usage(what.to_string()));
        }
        Ok(Some((broker, tls)))
    }

    /// The key of the stream, and the name of this process.
    pub fn names(&self) -> (String, Option<String>) {
        (self.backplane_stream.clone(), self.backplane_name.clone())
    }

    /// Where its side of TLS is read from.
    pub fn upstream_tls(&self) -> UpstreamTlsArgs {
        UpstreamTlsArgs::from(&self.tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_port_database_user_and_password() {
        let parsed = |text| parse(text).expect(text);
        let short = parsed("redis://10.0.0.7");
        assert_eq!((short.is_tls, short.credentials, short.database), (false, None, 0));
        assert_eq!(short.address.to_string(), "10.0.0.7:6379");
        let long = parsed("rediss://app:p%40ss%2f@cache.example:7000/3");
        assert_eq!((long.is_tls, long.database), (true, 3));
        assert_eq!(long.credentials, Some(("app".to_string(), "p@ss/".to_string())));
        assert_eq!(long.address.to_string(), "cache.example:7000");
        assert_eq!(parsed("redis://:secret@[::1]").address.to_string(), "[::1]:6379");
        assert_eq!(parsed("redis://[::1]:7/").address.to_string(), "[::1]:7");
    }

    #[test]
    fn a_wrong_url_is_refused_without_its_password() {
        for url in [
            "http://:secret@host",
            "redis://secret@host",
            "redis://:secret%@host",
            "redis://:secret@host/x",
            "redis://:secret@",
            "redis://:secret@host:99999",
            "10.0.0.7:6379",
        ] {
            let why = parse(url).expect_err(url);
            assert!(!why.contains("secret") && !why.is_empty(), "{url}: {why}");
        }
    }
}
