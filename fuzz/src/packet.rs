//! The reader of packets, and the decision over what it read.

use std::sync::LazyLock;

use enforcer_common::{
    decide,
    judge::{examine, judge, report},
    mark::PacketMark,
    offload::Completion,
    parse::{Start, parse},
    tables::{Party, Role, Tables as _},
    tls::{Lock, is_multipath, may_follow},
    vantage::{Origin, Vantage, View},
    verdict::Verdict,
};
use enforcer_policy::{
    SourceText,
    compile::{Compiled, PathNumbers, Simulator, compile},
    from_texts,
};

/// A policy of the repository, where everything is guarded and a good deal is allowed.
static COMPILED: LazyLock<Compiled> = LazyLock::new(|| {
    let text = include_str!("../../policies/control-plane-stacked-etcd.yaml");
    let text = text.replace("mode: DryRun", "mode: Enforce");
    let name = "control-plane-stacked-etcd.yaml".to_owned();
    let policy = from_texts(&[SourceText { name, text }]).unwrap_or_else(|e| panic!("{e}"));
    let node = &policy.nodes[0].name;
    compile(&policy, node, None, &mut PathNumbers::default()).unwrap_or_else(|e| panic!("{e}"))
});

/// The first byte selects the vantage; the rest is parsed and judged there.
pub fn packet(bytes: &[u8]) {
    let Some((&how, bytes)) = bytes.split_first() else {
        return;
    };
    let start = if how & 1 == 0 {
        Start::Ethernet
    } else {
        Start::Ip
    };
    let tables = Simulator::new(&COMPILED);
    let packet = match parse(bytes, start) {
        Ok(packet) => packet,
        Err(reason) => {
            assert!(!reason.name().is_empty());
            return is_known(decide::unreadable(&tables, reason));
        }
    };
    // Reading has no memory. A payload may lie outside of what was captured; that is no TLS then.
    assert_eq!(parse(bytes, start), Ok(packet));
    let (segment, first) = (&packet.segment, packet.segment.start());
    let is_captured = segment.is_empty() || (segment.from as usize) < bytes.len();
    assert!(
        is_captured || !may_follow(bytes, segment, first),
        "{segment:?}"
    );
    let role =
        [Role::Uplink, Role::Pod, Role::Loopback, Role::Undeclared][usize::from(how >> 1 & 3)];
    let flag = how & 8 != 0;
    let party = Party::from(how >> 4) % COMPILED.party_names.len() as Party;
    let mark = PacketMark::from_word(u16::from(how) << 8 | u16::from(how));
    // Whatever the checksum offload requests, a harmless one must not write to header bytes that decide.
    let completion = Completion {
        start: party.into(),
        field: u32::from(party) + u32::from(how),
    };
    if completion.is_harmless(&packet) {
        assert!(completion.field >= packet.transport);
    }
    let _ = is_multipath(bytes, &packet);
    let views = [
        View::Arrived { role, interface: 1 },
        View::Left {
            entered: mark.entered(role),
            to_pod: flag,
        },
        View::Sent {
            sender: party,
            origin: Origin::Socket,
            on_lo: flag,
        },
        View::Sent {
            sender: party,
            origin: Origin::OtherNamespace,
            on_lo: false,
        },
        View::Received {
            receiver: party,
            role,
            judged: flag,
        },
    ];
    for view in views {
        let vantage = Vantage::new(view);
        let judged = judge(&tables, vantage, &packet, || flag);
        is_known(judged.verdict);
        let examined = examine(
            &tables,
            vantage,
            mark,
            judged,
            Some(&packet),
            || !completion.is_harmless(&packet),
            || Lock::from_number(u32::from(how >> 5)),
        );
        is_known(examined.verdict);
        assert!(
            examined.verdict.is_denied() || !judged.verdict.is_denied(),
            "a second look lets pass what the first one denied"
        );
        let _ = report(vantage, mark, examined.verdict, examined.lock);
    }
}

/// A verdict of a policy names what the policy has.
fn is_known(verdict: Verdict) {
    let tables = Simulator::new(&COMPILED);
    assert!(tables.settings().is_some());
    assert_ne!(verdict, Verdict::UNSET);
    assert_eq!(
        verdict.is_denied(),
        !verdict.passes(),
        "the policy enforces"
    );
}
