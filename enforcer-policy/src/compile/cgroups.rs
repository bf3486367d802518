//! Which declared cgroup a process is in. The kernel side of the agent and the simulator behind `explain` use the same
//! functions.

use super::tables::CgroupRule;
use crate::glob::Glob;

/// The rule for the processes of a cgroup: that of the deepest declared cgroup among itself and its ancestors.
pub fn rule_for<'r>(rules: &'r [CgroupRule], path: &str) -> Option<&'r CgroupRule> {
    let segments = segments(path);
    (0..=segments.len())
        .rev()
        .find_map(|depth| rule_at(rules, &segments[..depth]))
}

/// The rule that declares exactly this cgroup. Of several, the narrowest: a name before a glob, and of two globs the
/// one whose names the other matches, too. In a valid policy one of them is always narrower.
pub fn rule_at<'r>(rules: &'r [CgroupRule], segments: &[&str]) -> Option<&'r CgroupRule> {
    rules
        .iter()
        .filter(|rule| matches(&rule.pattern, segments))
        .reduce(|best, rule| match is_within(&rule.pattern, &best.pattern) {
            true => rule,
            false => best,
        })
}

/// The segments of a path below the root.
pub fn segments(path: &str) -> Vec<&str> {
    path.split('/').filter(|s| !s.is_empty()).collect()
}

fn matches(pattern: &str, path: &[&str]) -> bool {
    let parts = segments(pattern);
    parts.len() == path.len()
        && parts.iter().zip(path).all(|(part, segment)| {
            part == segment || (may_be_glob(part) && Glob::or_literal(part).matches(segment))
        })
}

/// Most segments are plain names, and there may be many.
fn may_be_glob(part: &str) -> bool {
    part.contains(['*', '?', '['])
}

/// Whether every cgroup that one pattern matches is matched by the other. Both have the same depth.
fn is_within(one: &str, other: &str) -> bool {
    let pairs = segments(one).into_iter().zip(segments(other));
    one != other
        && pairs.into_iter().all(|(one, other)| {
            one == other || Glob::or_literal(one).is_within(&Glob::or_literal(other))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The deeper pattern wins, and of two at the same depth the narrower one, in whatever order they are declared.
    #[test]
    fn the_deepest_and_then_the_narrowest_wins() {
        let patterns = [
            "/pods/*",
            "/pods/a*",
            "/pods/a-1",
            "/pods/a*/x",
            "/*/b",
            "/pods",
            "/s/*.service",
            "/s/kube*.service",
        ];
        let rule = |pattern: &&str| CgroupRule {
            pattern: (*pattern).to_owned(),
            party: 1,
            components: Vec::new(),
        };
        let mut rules: Vec<CgroupRule> = patterns.iter().map(rule).collect();
        for _ in 0..patterns.len() {
            rules.rotate_left(1);
            for reversed in [false, true] {
                if reversed {
                    rules.reverse();
                }
                for (path, expected) in [
                    ("/pods/a-1/deep/er", Some("/pods/a-1")),
                    ("/pods/a-2", Some("/pods/a*")),
                    ("/pods/c", Some("/pods/*")),
                    ("/pods/a-1/x", Some("/pods/a*/x")),
                    ("/pods", Some("/pods")),
                    ("/s/kubelet.service", Some("/s/kube*.service")),
                    ("/s/etcd.service/x", Some("/s/*.service")),
                    ("/s/b", Some("/*/b")),
                    ("/s", None),
                    ("/", None),
                ] {
                    let found = rule_for(&rules, path).map(|rule| rule.pattern.as_str());
                    assert_eq!(found, expected, "{path}");
                }
            }
        }
    }
}
