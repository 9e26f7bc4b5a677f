//! `--shared-limits`.

use clap::Args;

use super::backplane::broker;
use super::tls::UpstreamTlsArgs;
use super::{CommandError, MUCH, ServerArgs};
use crate::shared_limits::{self, Pending};

/// What several processes have together.
#[derive(Args)]
pub struct SharedLimitsArgs {
    /// Make --total-rate that of all processes that name this Redis or Valkey, as
    /// redis://[USER:PASSWORD@]HOST[:PORT][/DB], or rediss:// for TLS. While it is away, each keeps its last share
    #[arg(long, value_name = "URL", help_heading = MUCH, requires = "total_rate")]
    shared_limits: Option<String>,
    /// The key there: processes with the same one have one --total-rate
    #[arg(long, value_name = "KEY", default_value = "tidemill:limits", help_heading = MUCH, requires = "shared_limits",
          hide_short_help = true)]
    shared_limits_key: String,
}

impl SharedLimitsArgs {
    pub fn are_shared(&self) -> bool {
        self.shared_limits.is_some()
    }

    /// Connections that the reactor needs for it.
    pub fn connections(&self) -> usize {
        if self.are_shared() { shared_limits::CONNECTIONS } else { 0 }
    }
}

impl ServerArgs {
    /// What is shared with other processes, if anything is.
    ///
    /// # Errors
    ///
    /// One line for a person, without the password.
    pub fn shared_limits(&self) -> Result<Option<Pending>, CommandError> {
        let Some((url, total)) = self.shared.shared_limits.as_ref().zip(self.total_rate()) else {
            return Ok(None);
        };
        let (broker, _) = broker("--shared-limits", url, &UpstreamTlsArgs::system_roots())?;
        let key = self.shared.shared_limits_key.clone();
        Ok(Some(Pending::new(broker, key, total, self.shards.count())))
    }
}
