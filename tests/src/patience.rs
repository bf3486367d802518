//! How long to wait for what must happen. An emulated machine needs many times as long as others.

use std::env;
use std::time::Duration;

/// The factor for a slow machine.
const VARIABLE: &str = "ENFORCER_LAB_PATIENCE";

/// This duration, multiplied if the machine needs it.
pub fn patient(usual: Duration) -> Duration {
    let times = env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    usual * times.unwrap_or(1)
}
