//! The layout of what programs and agent share, by which a later agent recognizes whether it can
//! adopt existing maps. It is recorded in `layout.txt`, and a test keeps that file up to date.

/// The maps with their sizes, and a digest of the source code of everything that they contain.
const TEXT: &str = include_str!("layout.txt");

/// Distinguishes layouts.
pub(super) const DIGEST: u64 = digest(TEXT.as_bytes());

/// A map in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapLayout {
    /// Its name.
    pub(super) name: &'static str,
    /// `enum bpf_map_type` of include/uapi/linux/bpf.h.
    pub(super) kind: u32,
    /// Bytes of a key.
    pub(super) key: u32,
    /// Bytes of a value.
    pub(super) value: u32,
    /// The maximum number of elements.
    pub(super) entries: u32,
}

/// All maps that outlive the agent.
pub(super) fn maps() -> impl Iterator<Item = MapLayout> {
    TEXT.lines().filter_map(|line| {
        let mut words = line.strip_prefix("map ")?.split(' ');
        let name = words.next()?;
        let mut number = || words.next()?.parse().ok();
        Some(MapLayout {
            name,
            kind: number()?,
            key: number()?,
            value: number()?,
            entries: number()?,
        })
    })
}

/// FNV-1a: protects against no forgery, only tells versions apart.
const fn digest(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, fs, path::Path};

    use aya_obj::Object;

    use super::*;
    use crate::kernel::programs::OBJECT;

    /// The source of everything that is stored in maps, on sockets and between hooks.
    const SOURCES: [&str; 11] = [
        "enforcer-common/src/addr.rs",
        "enforcer-common/src/cache.rs",
        "enforcer-common/src/hosts.rs",
        "enforcer-common/src/interfaces.rs",
        "enforcer-common/src/mark.rs",
        "enforcer-common/src/packet.rs",
        "enforcer-common/src/record.rs",
        "enforcer-common/src/tables.rs",
        "enforcer-common/src/tls.rs",
        "enforcer-common/src/vantage.rs",
        "enforcer-common/src/verdict.rs",
    ];

    /// The code without its tests, comments and blanks, which may change without changing the
    /// layout.
    fn code(source: &str) -> String {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().map(str::trim);
        lines.filter(|line| !line.starts_with("//")).collect()
    }

    fn text() -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut text = "# Made by the test `the_layout_is_written_down`. Another layout is another set of maps: an agent that finds\n\
            # maps of another one makes its own beside them, and moves the links over.\n"
            .to_owned();
        let object = Object::parse(OBJECT).unwrap();
        let mut maps: Vec<_> = object.maps.iter().collect();
        maps.sort_by_key(|(name, _)| *name);
        for (name, map) in maps {
            // The compiler's and the log's maps belong to one process.
            if name.starts_with('.') || name.starts_with("AYA_") {
                continue;
            }
            let (kind, key, value) = (map.map_type(), map.key_size(), map.value_size());
            let entries = map.max_entries();
            writeln!(text, "map {name} {kind} {key} {value} {entries}").unwrap();
        }
        for source in SOURCES {
            let of_file = code(&fs::read_to_string(root.join(source)).unwrap());
            writeln!(text, "code {source} {:016x}", digest(of_file.as_bytes())).unwrap();
        }
        text
    }

    #[test]
    fn the_layout_is_written_down() {
        let text = text();
        if std::env::var_os("ENFORCER_WRITE_DOCS").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernel/layout.txt");
            fs::write(path, &text).unwrap();
            return;
        }
        assert_eq!(
            text, TEXT,
            "what stands in maps has changed, and with it their layout: write it down with \
             `ENFORCER_WRITE_DOCS=1 cargo test -p enforcer --lib the_layout_is_written_down`, and say in the changelog \
             that counters begin anew with this version"
        );
        assert!(maps().count() > 20, "{text}");
    }
}
