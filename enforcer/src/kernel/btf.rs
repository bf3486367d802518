//! Finds fields of the running kernel's own structs by its type information (BTF,
//! Documentation/bpf/btf.rst).
//!
//! Programs get only the fields of their context. The loader finds types by name but exposes none
//! of their members, so the few that are needed are looked up here.

use std::{fs, io, path::Path};

/// Where the kernel exposes its type information.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
// enum in include/uapi/linux/btf.h
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// How deeply anonymous structs may be nested.
const DEPTH: u32 = 16;

/// Type information.
pub(super) struct TypeInfo {
    bytes: Vec<u8>,
    types: std::ops::Range<usize>,
    strings: std::ops::Range<usize>,
    /// Where each type begins; type 0, which is `void`, has no entry.
    offsets: Vec<usize>,
}

/// A type's header: its name, its kind, the number of its parts, and its size or the type that it
/// refers to.
struct Header {
    name: u32,
    kind: u32,
    parts: usize,
    /// Members hold the widths of bit fields in addition to their offsets.
    with_widths: bool,
    target: u32,
    /// The offset of what follows the header.
    rest: usize,
}

impl TypeInfo {
    /// The running kernel's type information.
    ///
    /// # Errors
    ///
    /// It cannot be read, or does not follow the documented format.
    pub(super) fn of_kernel() -> io::Result<Self> {
        Self::read(Path::new(VMLINUX))
    }

    fn read(path: &Path) -> io::Result<Self> {
        Self::parse(fs::read(path)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no type information"))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let length = word(&bytes, 4)? as usize;
        let section = |at: usize| {
            let start = length.checked_add(word(&bytes, at)? as usize)?;
            let end = start.checked_add(word(&bytes, at + 4)? as usize)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut info = Self {
            bytes,
            types: types.clone(),
            strings,
            offsets: vec![usize::MAX],
        };
        let mut at = types.start;
        while at < info.types.end {
            info.offsets.push(at);
            let header = info.header(at)?;
            at = header.rest + header.size_of_rest()?;
        }
        Some(info)
    }

    fn header(&self, at: usize) -> Option<Header> {
        let details = word(&self.bytes, at.checked_add(4)?)?;
        Some(Header {
            name: word(&self.bytes, at)?,
            kind: details >> 24 & 0x1f,
            parts: (details & 0xffff) as usize,
            with_widths: details >> 31 != 0,
            target: word(&self.bytes, at + 8)?,
            rest: at + 12,
        })
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let at = self.strings.start.saturating_add(offset as usize);
        let found = self.bytes.get(at..self.strings.end);
        found.is_some_and(|found| {
            found.starts_with(name.as_bytes()) && found.get(name.len()) == Some(&0)
        })
    }

    /// The offset of a struct's field in bits, including fields within its anonymous structs and
    /// unions.
    pub(super) fn field(&self, container: &str, field: &str) -> Option<u32> {
        self.offsets.iter().skip(1).find_map(|at| {
            let header = self.header(*at)?;
            if header.kind != STRUCT || !self.is_named(header.name, container) {
                return None;
            }
            self.field_of(&header, field, DEPTH)
        })
    }

    fn field_of(&self, header: &Header, field: &str, depth: u32) -> Option<u32> {
        (0..header.parts).find_map(|part| {
            let at = header.rest + part * 12;
            let name = word(&self.bytes, at)?;
            let place = word(&self.bytes, at + 8)?;
            let place = if header.with_widths {
                place & 0x00ff_ffff
            } else {
                place
            };
            if name != 0 {
                return self.is_named(name, field).then_some(place);
            }
            let target = *self.offsets.get(word(&self.bytes, at + 4)? as usize)?;
            let inner = self.header(target)?;
            if depth == 0 || !matches!(inner.kind, STRUCT | UNION) {
                return None;
            }
            Some(place + self.field_of(&inner, field, depth - 1)?)
        })
    }
}

impl Header {
    /// How many bytes follow the common header; `None` for an unknown kind.
    fn size_of_rest(&self) -> Option<usize> {
        let _ = self.target;
        Some(match self.kind {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => self.parts * 12,
            ENUM | FUNC_PROTO => self.parts * 8,
            // Pointers, forward declarations, names, qualifiers, functions, floats and tags have no
            // more.
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

/// Where the kernel's `struct sk_buff` has what the programs need beyond their context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SkbFields {
    /// The byte that holds `ip_summed`.
    pub summed: u64,
    /// The bits of that byte below it.
    pub summed_shift: u64,
    /// `csum_start`, followed by `csum_offset`.
    pub csum_start: u64,
    /// `head`, followed by `data`.
    pub head: u64,
}

impl SkbFields {
    /// The running kernel's fields; `None` if their arrangement differs from all known ones.
    pub(super) fn of(info: &TypeInfo) -> Option<Self> {
        let field = |name| info.field("sk_buff", name);
        let bytes = |bits: u32| u64::from(bits / 8);
        let summed = field("ip_summed")?;
        let (start, offset) = (field("csum_start")?, field("csum_offset")?);
        let (head, data) = (field("head")?, field("data")?);
        let is_known = offset == start + 16
            && data == head + 64
            && start.is_multiple_of(8)
            && head.is_multiple_of(8)
            && summed % 8 <= 6
            && cfg!(target_endian = "little");
        is_known.then_some(Self {
            summed: bytes(summed),
            summed_shift: u64::from(summed % 8),
            csum_start: bytes(start),
            head: bytes(head),
        })
    }
}

/// Where the kernel holds a socket's network namespace, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketFields {
    /// `struct socket`: `sk`.
    pub sk: u64,
    /// `struct sock`: its network namespace.
    pub net: u64,
    /// `struct net`: its cookie.
    pub cookie: u64,
}

impl SocketFields {
    /// The running kernel's fields; `None` if their arrangement differs from all known ones.
    pub(super) fn of(info: &TypeInfo) -> Option<Self> {
        let field = |container, name| info.field(container, name).map(|bits| u64::from(bits / 8));
        // A socket begins with what all kinds of sockets have in common.
        if field("sock", "__sk_common") != Some(0) {
            return None;
        }
        Some(Self {
            sk: field("socket", "sk")?,
            net: field("sock_common", "skc_net")?,
            cookie: field("net", "net_cookie")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct with a named field and an anonymous union, which contains an anonymous struct.
    #[rustfmt::skip]
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0first\0inner\0";
        let (outer, first, inner) = (1, 7, 13);
        let kind = |kind: u32, parts: u32| kind << 24 | parts;
        let types = vec![
            // 1: an integer
            0, kind(INT, 0), 4, 32,
            // 2: a struct with a bit field
            0, kind(STRUCT, 1) | 1 << 31, 4, inner, 1, 2 << 24 | 5,
            // 3: a union of it
            0, kind(UNION, 1), 4, 0, 2, 0,
            // 4: the outer one, with a word of padding at its end
            outer, kind(STRUCT, 2), 12, first, 1, 0, 0, 3, 64_u32,
            // 5: a name for it, with nothing after the header
            0, kind(8, 0), 4,
            // 6: a pointer
            0, kind(2, 0),
        ];
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let length = types.len() as u32 * 4;
        for word in [24, 0, length, length, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_inside_anonymous_structs() {
        let info = TypeInfo::parse(sample()).unwrap();
        assert_eq!(info.field("outer", "first"), Some(0));
        assert_eq!(info.field("outer", "inner"), Some(69));
        assert_eq!(info.field("outer", "inne"), None);
        assert_eq!(info.field("first", "inner"), None);
    }

    #[test]
    fn truncated_or_invalid_type_information_is_refused() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(
                TypeInfo::parse(whole[..length].to_vec()).is_none(),
                "{length}"
            );
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                // Whatever the contents, parsing must not panic.
                if let Some(info) = TypeInfo::parse(bytes) {
                    let _ = info.field("outer", "inner");
                }
            }
        }
    }

    #[test]
    fn the_fields_of_this_kernel_are_found() {
        // Machines without BPF have none; the product reports that when it starts.
        let Ok(info) = TypeInfo::of_kernel() else {
            return;
        };
        assert!(SkbFields::of(&info).is_some());
        assert!(SocketFields::of(&info).is_some());
        assert_eq!(info.field("sk_buff", "no_such_field"), None);
    }
}
