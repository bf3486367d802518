//! How long to wait for what must come. An emulated machine needs many times as long as others.

use std::env;
use std::time::Duration;

/// How many times as long as usual, for a machine that is slow.
const VARIABLE: &str = "ENFORCER_LAB_PATIENCE";

/// So long, or as many times as the machine needs.
pub fn patient(usual: Duration) -> Duration {
    let times = env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    usual * times.unwrap_or(1)
}
