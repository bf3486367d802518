//! Tables of texts: how they are understood, and which errors they cause where.

mod cases;
mod errors;
mod understood;

use super::{Policy, PolicyErrors, SourceText, from_texts};

/// A policy that uses every feature of the language, to try an editor on and as a seed for fuzzing.
pub(super) const EVERYTHING: &str = include_str!("everything.yaml");

/// A small valid policy; tests replace a line in it.
pub(super) const SMALL: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: test }
spec:
  nodes:
    cp1: { addresses: [10.0.0.11, fd00::11], roles: [control-plane, etcd], uplinks: [eth0], podInterfaces: ['cali*'] }
    w1: { addresses: [10.0.0.21], roles: [worker] }
  podNetworks: [10.244.0.0/16]
  services:
    apiserver:secure: ['10.96.0.1:443']
  components:
    pods: { cgroups: [/kubepods.slice] }
    backup: { addresses: [192.0.2.7], ports: { agent: 9000/tcp } }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: small }
spec:
  profile: control-plane-stacked-etcd
  mode: DryRun
  otherTraffic: Allow
  paths:
    - name: backup-to-etcd
      from: [backup]
      to: etcd:client
      because: nightly snapshot
";

pub(super) fn read(text: &str) -> Result<Policy, PolicyErrors> {
    from_texts(&[SourceText {
        name: "p.yaml".to_owned(),
        text: text.to_owned(),
    }])
}

pub(super) fn good(text: &str) -> Policy {
    read(text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// All errors of a text, one per line: `line:column message | help`.
pub(super) fn said(errors: &PolicyErrors) -> String {
    let line = |error: &super::PolicyError| {
        let place = match (error.line, error.column) {
            (Some(line), Some(column)) => format!("{line}:{column}"),
            _ => "-".to_owned(),
        };
        format!(
            "{place} {} | {}",
            error.message,
            error.help.as_deref().unwrap_or_default()
        )
    };
    errors.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The text to replace, its replacement, and the expected error: parts that follow each other, with ` … ` between. `»`
/// marks the location that the error must point at; if that is outside of the replacement, the first part is
/// `line:column`.
pub(super) type Row = (&'static str, &'static str, &'static str);

pub(super) fn check_rows(
    base: &str,
    rows: &[Row],
    read: impl Fn(&str) -> Result<(), PolicyErrors>,
) {
    for (from, to, expected) in rows {
        assert!(base.contains(from), "{from:?} is not in the text");
        let marked = base.replacen(from, to, 1);
        let text = marked.replacen('»', "", 1);
        let mut parts: Vec<&str> = expected.split(" … ").collect();
        let place = match marked.split_once('»') {
            Some((before, _)) => {
                let line = before.rsplit('\n').next().unwrap_or_default();
                format!(
                    "{}:{}",
                    before.matches('\n').count() + 1,
                    line.chars().count() + 1
                )
            }
            None => parts.remove(0).to_owned(),
        };
        let errors = read(&text).expect_err(&text);
        expect(&errors, &place, &parts, &text);
    }
}

/// Some error is at that location and contains all of these parts.
pub(super) fn expect(errors: &PolicyErrors, place: &str, fragments: &[&str], text: &str) {
    let said = said(errors);
    let found = said.lines().any(|line| {
        line.starts_with(&format!("{place} ")) && fragments.iter().all(|part| line.contains(part))
    });
    assert!(
        found,
        "no error at {place} with {fragments:?}, but:\n{said}\nof\n{text}"
    );
}
