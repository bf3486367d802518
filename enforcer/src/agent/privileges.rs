//! The capabilities that this process needs, whichever user runs it: root has them, and so has the
//! service's own user.

use caps::{CapSet, Capability};

use super::AgentError;

/// A capability, and why it is needed.
type Needed = (Capability, &'static str);

/// What an agent needs.
const AGENT: [Needed; 3] = [
    (Capability::CAP_BPF, "to load programs and create maps"),
    (
        Capability::CAP_PERFMON,
        "to load programs that do arithmetic with pointers",
    ),
    (
        Capability::CAP_NET_ADMIN,
        "to load and attach programs of the network",
    ),
];

/// Checks that this process has the capabilities to run an agent.
///
/// # Errors
///
/// Names the missing capabilities.
pub(super) fn of_agent() -> Result<(), AgentError> {
    match lacking(effective) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(AgentError::MissingCapabilities { missing }),
    }
}

/// The needed capabilities that a process lacks, each with the reason.
fn lacking(has: impl Fn(Capability) -> bool) -> Vec<String> {
    let is_missing = |(capability, _): &&Needed| match capability {
        // For these two, the kernel also accepts the older capability.
        Capability::CAP_BPF | Capability::CAP_PERFMON => {
            !has(*capability) && !has(Capability::CAP_SYS_ADMIN)
        }
        capability => !has(*capability),
    };
    let missing = AGENT.iter().filter(is_missing);
    missing
        .map(|(capability, why)| format!("{capability} ({why})"))
        .collect()
}

/// If the kernel does not report capabilities, assumes this one: a call that needs it will then
/// fail.
fn effective(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(lacking(|_| true), Vec::<String>::new());
        let old = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];
        assert_eq!(lacking(|one| old.contains(&one)), Vec::<String>::new());
        assert_eq!(
            lacking(|one| one == Capability::CAP_NET_ADMIN),
            [
                "CAP_BPF (to load programs and create maps)",
                "CAP_PERFMON (to load programs that do arithmetic with pointers)",
            ]
        );
        let error = AgentError::MissingCapabilities {
            missing: lacking(|one| one == Capability::CAP_SYS_ADMIN),
        };
        let message = error.to_string();
        assert!(
            message.contains("lacks CAP_NET_ADMIN (to load and attach"),
            "{message}"
        );
    }
}
