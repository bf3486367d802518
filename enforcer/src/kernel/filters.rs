//! Filters of an agent that was killed. Unlike links, filters at the clsact qdisc stay when their
//! process ends, and continue to judge packets by the policy that was in force.

use enforcer_common::record::Hook;
use futures_util::TryStreamExt as _;
use rtnetlink::{
    TrafficFilterGetRequest,
    packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};

use super::{KernelError, LinkEvents, programs::TC};
use crate::api::Leftover;

/// Filters as text for a sentence.
pub fn list(filters: &[Leftover]) -> String {
    const SHOWN: usize = 8;
    let mut list: Vec<String> = filters
        .iter()
        .take(SHOWN)
        .map(ToString::to_string)
        .collect();
    if filters.len() > SHOWN {
        list.push(format!("{} more places", filters.len() - SHOWN));
    }
    list.join(", ")
}

/// All filters of ours at the interfaces of this network namespace. Must be called within a
/// runtime.
///
/// # Errors
///
/// The kernel does not answer.
pub async fn leftovers() -> Result<Vec<Leftover>, KernelError> {
    let links = LinkEvents::open()?.list().await?;
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| KernelError::Links(error.to_string()))?;
    tokio::spawn(connection);
    let mut found = Vec::new();
    for link in links {
        let Ok(index) = i32::try_from(link.index) else {
            continue;
        };
        let ask = || handle.traffic_filter(index).get();
        for (request, hook) in [
            (ask().ingress(), Hook::TcIngress),
            (ask().egress(), Hook::TcEgress),
        ] {
            if has_ours(request).await {
                found.push(Leftover {
                    interface: link.name.clone(),
                    index: link.index,
                    hook: hook.into(),
                });
            }
        }
    }
    Ok(found)
}

/// Whether one of the filters has the name of one of our programs. An interface that is gone has
/// none.
async fn has_ours(request: TrafficFilterGetRequest) -> bool {
    let filters: Result<Vec<TcMessage>, _> = request.execute().try_collect().await;
    let attributes = filters.into_iter().flatten().flat_map(|f| f.attributes);
    let options = attributes.flat_map(|attribute| match attribute {
        TcAttribute::Options(options) => options,
        _ => Vec::new(),
    });
    options.into_iter().any(|option| {
        matches!(option, TcOption::Bpf(TcFilterBpfOption::ProgName(found)) if TC.contains(&found.as_str()))
    })
}
