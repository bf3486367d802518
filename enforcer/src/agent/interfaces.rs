//! Lists all interfaces, with a time limit.

use std::time::Duration;

use tokio::time::timeout;

use super::AgentError;
use crate::kernel::{KernelError, Link, LinkEvents};

/// How long the kernel may take to list all interfaces.
const LIST: Duration = Duration::from_secs(5);

/// Lists all interfaces when the agent starts. While many interfaces come and go, the kernel may
/// never reach the end of its list.
pub(super) async fn list_at_start(links: &LinkEvents) -> Result<Vec<Link>, AgentError> {
    const TIMES: u32 = 20;
    let mut tried = 1;
    loop {
        match list(links).await {
            Err(_) if tried < TIMES => tokio::time::sleep(Duration::from_millis(100)).await,
            result => return Ok(result?),
        }
        tried += 1;
    }
}

/// All interfaces.
pub(super) async fn list(links: &LinkEvents) -> Result<Vec<Link>, KernelError> {
    let late = |_| KernelError::Links(format!("no answer within {} s", LIST.as_secs()));
    timeout(LIST, links.list()).await.map_err(late)?
}
