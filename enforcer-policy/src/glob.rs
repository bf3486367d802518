//! Globs over one name: an interface, or one segment of a cgroup's path. What they match, whether two can match the
//! same name, and which of two is narrower. All three are decided exactly, because overlapping patterns decide which
//! component a process belongs to and which interfaces lead to pods.

use std::{
    cmp::Ordering,
    collections::{HashSet, VecDeque},
    fmt,
};

/// A pattern: `*`, `?`, `[a-z]` and `[!a-z]`; every other character matches itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    text: String,
    tokens: Vec<Token>,
}

/// One part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Any run of characters, including none.
    Star,
    /// One character of these ranges.
    Of(Vec<(char, char)>),
    /// One character outside of these ranges.
    Not(Vec<(char, char)>),
}

impl Token {
    fn takes(&self, c: char) -> bool {
        let within = |ranges: &[(char, char)]| ranges.iter().any(|(a, b)| (*a..=*b).contains(&c));
        match self {
            Self::Star => true,
            Self::Of(ranges) => within(ranges),
            Self::Not(ranges) => !within(ranges),
        }
    }

    /// The character, if it matches only one.
    fn single(&self) -> Option<char> {
        match self {
            Self::Of(ranges) => match ranges.as_slice() {
                [(a, b)] if a == b => Some(*a),
                _ => None,
            },
            Self::Star | Self::Not(_) => None,
        }
    }

    fn ranges(&self) -> &[(char, char)] {
        match self {
            Self::Star => &[],
            Self::Of(ranges) | Self::Not(ranges) => ranges,
        }
    }
}

/// Why a text is not a valid pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadGlob {
    /// `[` without its `]`.
    OpenClass,
    /// `**`, which would be the same as `*`.
    DoubleStar,
}

impl fmt::Display for BadGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenClass => "`[` begins a set of characters that no `]` ends",
            Self::DoubleStar => "`**` means the same as `*` here",
        })
    }
}

impl Glob {
    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// It has an open `[` or a `**`.
    pub fn new(text: &str) -> Result<Self, BadGlob> {
        let chars: Vec<char> = text.chars().collect();
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some(c) = chars.get(at) {
            match c {
                '*' if tokens.last() == Some(&Token::Star) => return Err(BadGlob::DoubleStar),
                '*' => tokens.push(Token::Star),
                '?' => tokens.push(Token::Not(Vec::new())),
                '[' => {
                    let negated = chars.get(at + 1) == Some(&'!');
                    let first = at + 1 + usize::from(negated);
                    // A `]` at the beginning is an ordinary character.
                    let rest = chars.get(first + 1..).unwrap_or_default();
                    let length = rest.iter().position(|c| *c == ']');
                    let end = first + 1 + length.ok_or(BadGlob::OpenClass)?;
                    let ranges = ranges(&chars[first..end]);
                    tokens.push(match negated {
                        true => Token::Not(ranges),
                        false => Token::Of(ranges),
                    });
                    at = end;
                }
                c => tokens.push(Token::Of(vec![(*c, *c)])),
            }
            at += 1;
        }
        Ok(Self {
            text: text.to_owned(),
            tokens,
        })
    }

    /// The pattern, or the literal text if [`Glob::new`] refuses it.
    pub fn or_literal(text: &str) -> Self {
        Self::new(text).unwrap_or_else(|_| Self {
            text: text.to_owned(),
            tokens: text.chars().map(|c| Token::Of(vec![(c, c)])).collect(),
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name that it matches, if it matches only one.
    pub fn name(&self) -> Option<String> {
        self.tokens.iter().map(Token::single).collect()
    }

    /// Whether it matches a name.
    pub fn matches(&self, name: &str) -> bool {
        let mut states = Positions::start(self);
        for c in name.chars() {
            states = states.after(self, c);
            if states.is_empty() {
                return false;
            }
        }
        states.accepts(self)
    }

    /// A shortest name that both match, if any.
    pub fn common(&self, other: &Self) -> Option<String> {
        if self.is_apart(other) {
            return None;
        }
        for (one, other) in [(self, other), (other, self)] {
            if let Some(name) = one.name() {
                return other.matches(&name).then_some(name);
            }
        }
        let alphabet = alphabet(self, other);
        let mut seen = HashSet::new();
        let mut open = VecDeque::from([(0, 0, String::new())]);
        while let Some((i, j, name)) = open.pop_front() {
            if !seen.insert((i, j)) {
                continue;
            }
            let (one, two) = (self.tokens.get(i), other.tokens.get(j));
            if one.is_none() && two.is_none() {
                return Some(name);
            }
            // A star may match nothing. Steps that take no character come first, so that names in the queue grow.
            if one == Some(&Token::Star) {
                open.push_front((i + 1, j, name.clone()));
            }
            if two == Some(&Token::Star) {
                open.push_front((i, j + 1, name.clone()));
            }
            if let (Some(one), Some(two)) = (one, two) {
                let both = alphabet.iter().find(|c| one.takes(**c) && two.takes(**c));
                let step = |token: &Token, at: usize| at + usize::from(*token != Token::Star);
                if let Some(c) = both {
                    open.push_back((step(one, i), step(two, j), format!("{name}{c}")));
                }
            }
        }
        None
    }

    /// A quick check: both begin, or both end, with characters that differ.
    fn is_apart(&self, other: &Self) -> bool {
        let differ = |pairs: &mut dyn Iterator<Item = (&Token, &Token)>| {
            let mut single = pairs.map_while(|(one, two)| Some((one.single()?, two.single()?)));
            single.any(|(one, two)| one != two)
        };
        let (own, others) = (&self.tokens, &other.tokens);
        differ(&mut own.iter().zip(others))
            || differ(&mut own.iter().rev().zip(others.iter().rev()))
    }

    /// The effort of comparing it with another one.
    pub(crate) fn effort(&self, other: &Self) -> usize {
        match self.text == other.text || self.is_apart(other) {
            true => 1,
            false => (self.tokens.len() + 1) * (other.tokens.len() + 1),
        }
    }

    /// Whether another pattern matches every name that this one does. Also `false` if that takes too much effort to
    /// find out, which needs patterns that nobody writes.
    pub fn is_within(&self, other: &Self) -> bool {
        if let Some(name) = self.name() {
            return other.matches(&name);
        }
        let alphabet = alphabet(self, other);
        let start = (Positions::start(self), Positions::start(other));
        let mut seen = HashSet::from([start.clone()]);
        let mut open = vec![start];
        while let Some((own, others)) = open.pop() {
            if own.accepts(self) && !others.accepts(other) {
                return false;
            }
            if seen.len() > MAX_STATES {
                return false;
            }
            for c in &alphabet {
                let next = own.after(self, *c);
                if !next.is_empty() {
                    let state = (next, others.after(other, *c));
                    if seen.insert(state.clone()) {
                        open.push(state);
                    }
                }
            }
        }
        true
    }

    /// `Less`: this one is narrower than the other; `Greater`: wider; `Equal`: both match the same names. `None` if
    /// neither matches all of the other's names.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self.is_within(other), other.is_within(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Less),
            (false, true) => Some(Ordering::Greater),
            (false, false) => None,
        }
    }
}

/// Whether an interface that both an uplink's pattern and a pod interface's pattern match is the uplink: only if the
/// uplink's pattern is narrower. In doubt it is a pod's, as nothing from a pod may pass for another host.
pub fn is_rather_uplink(uplink: &Glob, pod: &Glob) -> bool {
    uplink.compare(pod) == Some(Ordering::Less)
}

/// The positions in a pattern that a name may have led to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Positions(Vec<usize>);

impl Positions {
    fn start(glob: &Glob) -> Self {
        let mut positions = Self(Vec::new());
        positions.add(glob, 0);
        positions
    }

    fn add(&mut self, glob: &Glob, mut at: usize) {
        loop {
            if let Err(place) = self.0.binary_search(&at) {
                self.0.insert(place, at);
            }
            if glob.tokens.get(at) != Some(&Token::Star) {
                return;
            }
            at += 1;
        }
    }

    fn after(&self, glob: &Glob, c: char) -> Self {
        let mut next = Self(Vec::new());
        for at in &self.0 {
            match glob.tokens.get(*at) {
                Some(Token::Star) => next.add(glob, *at),
                Some(token) if token.takes(c) => next.add(glob, at + 1),
                _ => {}
            }
        }
        next
    }

    fn accepts(&self, glob: &Glob) -> bool {
        self.0.last() == Some(&glob.tokens.len())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Representative characters: between two bounds of the patterns, all characters behave alike.
fn alphabet(one: &Glob, two: &Glob) -> Vec<char> {
    let tokens = || one.tokens.iter().chain(&two.tokens);
    let mut bounds: Vec<char> = tokens()
        .flat_map(Token::ranges)
        .flat_map(|(first, last)| [Some(*first), following(*last)])
        .flatten()
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    // Plain letters first, as the names that are shown are made of these.
    let mut found: Vec<char> = Vec::new();
    let mut classes = HashSet::new();
    let plain = ('a'..='z').chain('0'..='9').chain(['-', '_', '.']);
    for c in plain.chain(bounds.iter().copied()) {
        if is_in_names(c) && classes.insert(bounds.partition_point(|bound| *bound <= c)) {
            found.push(c);
        }
    }
    found
}

/// Names contain no slash and no control characters.
fn is_in_names(c: char) -> bool {
    c != '/' && !c.is_control()
}

fn following(c: char) -> Option<char> {
    match c {
        '\u{d7ff}' => Some('\u{e000}'),
        c => char::from_u32(u32::from(c) + 1),
    }
}

fn ranges(chars: &[char]) -> Vec<(char, char)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(first) = chars.get(at) {
        match (chars.get(at + 1), chars.get(at + 2)) {
            (Some('-'), Some(last)) => {
                ranges.push((*first, *last));
                at += 3;
            }
            _ => {
                ranges.push((*first, *first));
                at += 1;
            }
        }
    }
    ranges
}

/// The search is given up beyond this number of sets of positions.
const MAX_STATES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str) -> Glob {
        Glob::new(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn overlap_and_width_are_decided() {
        use Ordering::{Equal, Greater, Less};
        for (one, two, common, order) in [
            ("eth0", "eth0", Some("eth0"), Some(Equal)),
            ("eth0", "eth*", Some("eth0"), Some(Less)),
            ("en*", "eni*", Some("eni"), Some(Greater)),
            ("en*", "cali*", None, None),
            ("e*0", "eth*", Some("eth0"), None),
            ("?*", "*?", Some("a"), Some(Equal)),
            ("?", "*", Some("a"), Some(Less)),
            ("*", "", Some(""), Some(Greater)),
            ("[a-c]x", "?x", Some("ax"), Some(Less)),
            ("[!a]", "[a]", None, None),
            ("[!a]", "[b-d]", Some("b"), Some(Greater)),
            ("a*a", "a", None, None),
            ("*-pod1*", "*-pod2*", Some("-pod1-pod2"), None),
            ("*-pod1.slice", "*-pod2.slice", None, None),
            ("pod?", "pod[0-9]", Some("pod0"), Some(Greater)),
        ] {
            let (a, b) = (glob(one), glob(two));
            assert_eq!(a.common(&b).is_some(), common.is_some(), "{one} {two}");
            assert_eq!(b.common(&a).is_some(), common.is_some(), "{two} {one}");
            if let Some(name) = a.common(&b) {
                assert!(a.matches(&name) && b.matches(&name), "{one} {two} {name}");
                assert_eq!(
                    Some(name.chars().count()),
                    common.map(|c| c.chars().count()),
                    "{one} {two}"
                );
            }
            // Patterns without a common name have no order.
            assert_eq!(a.compare(&b), order, "{one} {two}");
            assert_eq!(b.compare(&a), order.map(Ordering::reverse), "{two} {one}");
        }
    }

    #[test]
    fn what_is_no_pattern() {
        assert_eq!(Glob::new("a["), Err(BadGlob::OpenClass));
        assert_eq!(Glob::new("a[]"), Err(BadGlob::OpenClass));
        assert_eq!(Glob::new("[!"), Err(BadGlob::OpenClass));
        assert_eq!(Glob::new("a**"), Err(BadGlob::DoubleStar));
        assert!(Glob::or_literal("a[").matches("a["));
        assert_eq!(glob("a[b]").name().as_deref(), Some("ab"));
        assert_eq!(glob("[ab]").name(), None);
    }

    /// Every short pattern and name over a small alphabet: a well-known library gives the same matches, and trying all
    /// names gives the same overlaps and widths.
    #[test]
    fn the_same_as_trying_all_names() {
        let mut texts = vec![String::new()];
        for _ in 0..3 {
            let longer: Vec<String> = texts
                .iter()
                .flat_map(|text| {
                    ["a", "b", "*", "?", "[ab]", "[!a]"].map(|part| format!("{text}{part}"))
                })
                .collect();
            texts.extend(longer);
            texts.sort();
            texts.dedup();
        }
        let mut names = vec![String::new()];
        for _ in 0..5 {
            let longer: Vec<String> = names
                .iter()
                .flat_map(|name| ["a", "b", "c"].map(|c| format!("{name}{c}")))
                .collect();
            names.extend(longer);
            names.sort();
            names.dedup();
        }
        let patterns: Vec<(Glob, Vec<bool>)> = texts
            .iter()
            .filter_map(|text| {
                let glob = Glob::new(text).ok()?;
                let known = ::glob::Pattern::new(text).unwrap();
                let found = names.iter().map(|name| {
                    assert_eq!(glob.matches(name), known.matches(name), "{text} {name}");
                    glob.matches(name)
                });
                let found = found.collect();
                Some((glob, found))
            })
            .collect();
        // Names of five characters distinguish patterns of three parts.
        for (one, ones) in patterns.iter().step_by(3) {
            for (two, twos) in patterns.iter().step_by(7) {
                let mut pairs = ones.iter().zip(twos);
                let within = pairs.clone().all(|(one, two)| !one || *two);
                assert_eq!(one.is_within(two), within, "{} in {}", one.text, two.text);
                let common = pairs.any(|(one, two)| *one && *two);
                assert_eq!(
                    one.common(two).is_some(),
                    common,
                    "{} and {}",
                    one.text,
                    two.text
                );
            }
        }
    }

    /// A comparison that would take exponentially many sets of positions is given up.
    #[test]
    fn patterns_that_nobody_writes_end() {
        let wide = glob(&format!("*a{}", "?".repeat(40)));
        let other = glob(&format!("*b{}*", "?".repeat(41)));
        assert!(!other.is_within(&wide));
        assert!(other.common(&wide).is_some());
        assert!(!wide.matches(&"a".repeat(4)) && wide.matches(&"a".repeat(50)));
    }
}
