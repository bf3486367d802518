//! Attacks with frames that bypass the queueing discipline, and TC egress with it, requested in
//! ways that the kernel's hook on `setsockopt` does not see either. On lo, they still have to
//! arrive through ingress.

use anyhow::Result;
use enforcer_tests::plan::{LOOPBACK, port};
use enforcer_tests::probe::{Call, Inject, Probe, Ring, Talk};

use crate::attack::{Attack, Attempt, row_of_host_pod as row};
use crate::stage::{At, Stage, to_insecure_on_lo};

const ACK: u8 = 0x18;
const FROM: u16 = 41_500;
const INPUT: At = At::Input("cp1");
const ASKED: (&str, &str) = ("cgroup/setsockopt", "BypassesHooks");
const ARRIVED: (&str, &str) = ("tc/ingress", "BypassesHooks");
const NO_COMPAT: &str = "this kernel takes no 32-bit system calls";
const NO_URING: &str = "this kernel's io_uring sets no socket options";

/// Whether a call can set an option, even though it only does harm: a pod is not refused it.
pub fn is_possible(stage: &Stage, call: Call) -> Result<bool> {
    let report = stage.lab.pod("pod-a").probe(&Probe::Ring(Ring { call }))?;
    Ok(report.outcome.worked())
}

/// SYNs to the insecure port on loopback, of both families.
fn on_lo<'a>(stage: &'a Stage, how: impl Fn(Inject) -> Inject) -> Result<Attempt<'a>> {
    let wanted = how(Inject::frames("lo", &[]));
    for call in [wanted.bypass, wanted.express].into_iter().flatten() {
        if !is_possible(stage, call)? {
            let why = if call == Call::Compat {
                NO_COMPAT
            } else {
                NO_URING
            };
            return Ok(Attempt::skipped(why));
        }
    }
    stage.inject_with(&stage.lab.hostnet("cp1"), INPUT, |mark| {
        let frames = to_insecure_on_lo(FROM, mark).map(|packet| packet.frame([0; 6], [0; 6]));
        how(Inject::frames("lo", &frames))
    })
}

#[rustfmt::skip]
pub fn rows() -> Vec<Attack> {
    vec![
        row("compat-bypass", "requests by a 32-bit system call (`int 0x80`) that its packet socket's frames bypass the queueing discipline (`PACKET_QDISC_BYPASS`), which no hook sees", ARRIVED, |stage| {
            on_lo(stage, |inject| Inject { bypass: Some(Call::Compat), ..inject })
        }),
        row("compat-bypass-talk", "opens a whole connection to the insecure port that way, with its own TCP implementation", ARRIVED, |stage| {
            if !is_possible(stage, Call::Compat)? {
                return Ok(Attempt::skipped(NO_COMPAT));
            }
            let from = LOOPBACK.at6(42_000 + stage.unique_number());
            let to = LOOPBACK.at6(port::INSECURE);
            let how = Talk { bypass: Some(Call::Compat), ..Talk::to(to, from, "lo", [[0; 6]; 2]) };
            stage.talk(&stage.lab.hostnet("cp1"), &stage.insecure, how)
        }),
        row("compat-express", "sends by an `AF_XDP` socket whose ring it requested by a 32-bit system call", ARRIVED, |stage| {
            on_lo(stage, |inject| Inject { express: Some(Call::Compat), ..inject })
        }),
        row("compat-ring-bypass", "sends from memory shared with the kernel (`PACKET_TX_RING`), past the queueing discipline", ARRIVED, |stage| {
            on_lo(stage, |inject| Inject { bypass: Some(Call::Compat), ring: true, ..inject })
        }),
        row("compat-cooked-bypass", "the same with a socket for which the kernel writes the link header", ARRIVED, |stage| {
            on_lo(stage, |inject| Inject { bypass: Some(Call::Compat), cooked: true, ..inject })
        }),
        row("uring-bypass", "requests `PACKET_QDISC_BYPASS` by io_uring", ASKED, |stage| {
            on_lo(stage, |inject| Inject { bypass: Some(Call::Uring), ..inject })
        }),
        row("uring-compat-bypass", "requests it by an io_uring that was created by a 32-bit system call, so that the kernel treats its requests as such calls", ARRIVED, |stage| {
            on_lo(stage, |inject| Inject { bypass: Some(Call::UringCompat), ..inject })
        }),
        row("uring-compat-express", "requests the ring of an `AF_XDP` socket that way", ARRIVED, |stage| {
            on_lo(stage, |inject| Inject { express: Some(Call::UringCompat), ..inject })
        }),
    ]
}

impl Stage {
    /// Data sent by a TCP implementation of the attacker's own.
    pub fn talk<'a>(
        &'a self,
        from: &enforcer_tests::Workload,
        victim: &'a enforcer_tests::Server,
        talk: Talk,
    ) -> Result<Attempt<'a>> {
        let word = format!("word-{}", self.unique_number());
        let timeout_ms = 400;
        let talk = Talk { timeout_ms, ..talk };
        from.probe(&Probe::Talk(talk.segment(ACK, 0, 0, word.as_bytes())))?;
        Ok(Attempt::new(1, None, move || {
            Ok(crate::stage::heard(victim, &word))
        }))
    }
}
