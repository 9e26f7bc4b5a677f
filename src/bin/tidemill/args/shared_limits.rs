//! `--shared-limits`.

use clap::Args;

use super::backplane::broker;
use super::tls::UpstreamTlsArgs;
use super::{CommandError, ServerArgs};
use crate::shared_limits::{Pending, Shared};

const SHARED: &str = "Limits of several processes";

/// What several processes have together.
#[derive(Args)]
pub struct SharedLimitsArgs {
    /// Make --total-rate and --total-connections those of all processes that name this Redis or Valkey, as
    /// redis://[USER:PASSWORD@]HOST[:PORT][/DB], or rediss:// for TLS. While it is away, each keeps its last share
    #[arg(long, value_name = "URL", help_heading = SHARED)]
    shared_limits: Option<String>,
    /// Maximum connections of these processes together; a proxied one counts twice. --max-connections is of each
    #[arg(long, value_name = "N", help_heading = SHARED, requires = "shared_limits",
          value_parser = clap::value_parser!(u32).range(1..))]
    total_connections: Option<u32>,
    /// The key there: processes with the same one share their limits
    #[arg(long, value_name = "KEY", default_value = "tidemill:limits", help_heading = SHARED,
          requires = "shared_limits", hide_short_help = true)]
    shared_limits_key: String,
}

impl SharedLimitsArgs {
    pub fn are_shared(&self) -> bool {
        self.shared_limits.is_some()
    }
}

impl ServerArgs {
    /// Connections that the reactor needs for what is shared.
    pub fn shared_connections(&self) -> usize {
        let rate = self.total_rate().is_some() && self.shared.are_shared();
        usize::from(rate) + usize::from(self.shared.total_connections.is_some())
    }

    /// What is shared with other processes.
    ///
    /// # Errors
    ///
    /// One line for a person, without the password.
    pub fn shared_limits(&self) -> Result<Pending, CommandError> {
        let mut pending = Pending::default();
        let Some(url) = &self.shared.shared_limits else { return Ok(pending) };
        let shared = |kind: &str, total| {
            let (broker, _) = broker("--shared-limits", url, &UpstreamTlsArgs::system_roots())?;
            Ok(Shared { broker, key: format!("{}:{kind}", self.shared.shared_limits_key), total })
        };
        if self.shared_connections() == 0 {
            let what = "--shared-limits has no effect without --total-rate or --total-connections";
            return Err(CommandError::Usage(what.to_string()));
        }
        if let Some(rate) = self.total_rate() {
            pending.share_rate(shared("rate", rate)?, self.shards.count());
        }
        if let Some(max) = self.shared.total_connections {
            pending.share_connections(shared("connections", max as usize)?);
        }
        Ok(pending)
    }
}
