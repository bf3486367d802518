//! Access to an skb: its packet's bytes, and its other fields.

use core::{
    arch::asm,
    array,
    hint::black_box,
    mem::{self, MaybeUninit},
    ptr,
};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_sock,
    },
    helpers::generated::{
        bpf_fib_lookup as bpf_fib_lookup_helper, bpf_probe_read_kernel, bpf_sk_fullsock,
        bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id, bpf_skb_load_bytes, bpf_skb_pull_data,
    },
};
use enforcer_common::{
    addr::Ip,
    limits,
    mark::PacketMark,
    offload::Completion,
    packet::{Packet, PacketBytes},
    parse::{Start, parse_into},
    tables::Party,
    verdict::Reason,
};
use zerocopy::FromBytes;

use crate::maps::Active;

// include/linux/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
// include/uapi/linux/if_packet.h
const PACKET_LOOPBACK: u32 = 5;

/// Offsets below this are read without a helper.
const DIRECT: usize = limits::MAX_READ as usize;

// Offsets of fields in the kernel's `struct sk_buff`, in bytes. Set before loading, from the kernel's type information.
/// The byte that holds `ip_summed`.
#[unsafe(no_mangle)]
static SKB_SUMMED: u64 = 0;
/// The number of bits below it in that byte.
#[unsafe(no_mangle)]
static SKB_SUMMED_SHIFT: u64 = 0;
/// `csum_start`, with `csum_offset` behind it.
#[unsafe(no_mangle)]
static SKB_CSUM_START: u64 = 0;
/// `head`, with `data` behind it.
#[unsafe(no_mangle)]
static SKB_HEAD: u64 = 0;

/// [`Packet::ROOM`], made of words that the compiler does not know to be zero: for that many zeroes it would call a function
/// that writes them byte by byte.
#[inline(always)]
pub fn room() -> Packet {
    let zero: u64;
    // SAFETY: a number.
    unsafe { asm!("{} = 0", out(reg) zero, options(pure, nomem, nostack)) };
    // SAFETY: as long, and that room is all zero.
    unsafe { mem::transmute::<[u64; 10], Packet>([zero; 10]) }
}

const _: () = {
    // SAFETY: as long, and no byte of a packet is unset.
    let words = unsafe { mem::transmute::<Packet, [u64; 10]>(Packet::ROOM) };
    let mut word = 0;
    while word < words.len() {
        assert!(words[word] == 0);
        word += 1;
    }
};

/// An skb as the TC and the `cgroup_skb` hooks see it.
#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

impl Skb {
    /// The skb of a program's context.
    pub fn of<C: EbpfContext>(ctx: &C) -> Self {
        Self(ctx.as_ptr().cast())
    }

    /// The skb of a context that was passed to a global function.
    pub const fn from_ptr(context: *mut __sk_buff) -> Self {
        Self(context)
    }

    /// The context itself, for helpers.
    pub const fn as_ptr(self) -> *mut __sk_buff {
        self.0
    }

    /// The interface it is on.
    pub fn ifindex(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).ifindex }
    }

    /// The interface by which it came in; 0 if it was created on this node.
    pub fn entered_by(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ingress_ifindex }
    }

    /// Whether it is this node's own copy of a multicast or broadcast that it sends: it did not come in by a link, whatever
    /// its interface is (`dev_loopback_xmit` in net/core/dev.c).
    pub fn is_looped_back(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).pkt_type == PACKET_LOOPBACK }
    }

    /// The mark that an earlier hook has put on it.
    pub fn mark(self) -> PacketMark {
        // SAFETY: as above; the field has 16 bits.
        PacketMark::from_word(unsafe { (*self.0).tc_index } as u16)
    }

    /// Marks it for the hooks that follow. TC only.
    pub fn set_mark(self, mark: PacketMark) {
        // SAFETY: as above; the verifier lets TC programs write this field.
        unsafe { (*self.0).tc_index = mark.word().into() }
    }

    /// Whether some of its first bytes are outside of its head. Those may be in pages that a process shares and can still
    /// write: a packet socket's ring (`PACKET_TX_RING`), a file that is sent.
    #[inline(always)]
    pub fn is_shared_within(self, bytes: u32) -> bool {
        // SAFETY: as above.
        let (data, end, len) = unsafe { ((*self.0).data, (*self.0).data_end, (*self.0).len) };
        end - data < bytes.min(len)
    }

    /// Copies its first bytes into its head, so that they can not change after they were read. Returns whether they are
    /// there. TC only; afterwards the head must be read again.
    #[inline(always)]
    pub fn own(self, bytes: u32) -> bool {
        if !self.is_shared_within(bytes) {
            return true;
        }
        // SAFETY: as above.
        let bytes = bytes.min(unsafe { (*self.0).len });
        // SAFETY: the helper takes any skb, and a length that it has.
        unsafe { bpf_skb_pull_data(self.0, bytes) == 0 }
    }

    /// Parses the packet from bytes that can not be written any more. TC only.
    #[inline(always)]
    pub fn read_owned(self, start: Start, packet: &mut Packet) -> Result<(), Reason> {
        // Only the kernel writes the head.
        if parse_into(&Head(self), start, packet).is_ok() {
            // From here on it is where it was put, and nowhere else: copies would take room on the stack.
            // SAFETY: nothing is done.
            unsafe { asm!("{0} = {0}", inout(reg) &raw mut *packet => _, options(nostack)) };
            return Ok(());
        }
        *packet = room();
        if !self.own(limits::MAX_READ) {
            return Err(Reason::TruncatedHeader);
        }
        self.read_in_full(start, packet)
    }

    /// Whether a checksum offload would overwrite bytes that it was judged by. TC only.
    #[inline(always)]
    pub fn has_checksum_elsewhere(self, packet: Option<&Packet>) -> bool {
        if !self.waits_for_checksum() {
            return false;
        }
        let Some(packet) = packet else { return true };
        enforcer_checksum(self.0, packet) != 0
    }

    /// Whether a checksum is still to be written into it (`ip_summed` is `CHECKSUM_PARTIAL`).
    #[inline(always)]
    pub fn waits_for_checksum(self) -> bool {
        const CHECKSUM_PARTIAL: u8 = 3;
        // SAFETY: a plain read of a constant that the loader has set.
        let (at, shift) = unsafe {
            (
                ptr::read_volatile(&raw const SKB_SUMMED),
                ptr::read_volatile(&raw const SKB_SUMMED_SHIFT),
            )
        };
        match self.kernel_field::<[u8; 1]>(at) {
            Some([byte]) => byte >> shift & 3 == CHECKSUM_PARTIAL,
            // Reading it never fails; if it did, the worst would have to be assumed.
            None => true,
        }
    }

    /// A field of the kernel's own `struct sk_buff`, whose address is that of the program's context.
    #[inline(always)]
    fn kernel_field<T: FromBytes>(self, offset: u64) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let address = self.0.cast::<u8>().wrapping_add(offset as usize);
        // SAFETY: there is room for as many bytes; the helper reads any address of the kernel's, and fills all or fails.
        let failed = unsafe {
            bpf_probe_read_kernel(
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                address.cast(),
            )
        };
        if failed != 0 {
            return None;
        }
        // SAFETY: filled, and any bytes are one.
        Some(unsafe { value.assume_init() })
    }

    /// Where a checksum will be written.
    #[inline(always)]
    fn completion(self) -> Option<Completion> {
        // SAFETY: plain reads of constants that the loader has set.
        let (at_sum, at_head) = unsafe {
            (
                ptr::read_volatile(&raw const SKB_CSUM_START),
                ptr::read_volatile(&raw const SKB_HEAD),
            )
        };
        // These fields are adjacent: csum_start and csum_offset, head and data.
        let [start, offset] = self.kernel_field::<[u16; 2]>(at_sum)?;
        let [head, data] = self.kernel_field::<[u64; 2]>(at_head)?;
        // csum_start counts from the beginning of the buffer, and the packet begins somewhere in it.
        let start = u32::from(start).wrapping_sub(data.wrapping_sub(head) as u32);
        Some(Completion {
            start,
            field: start.wrapping_add(offset.into()),
        })
    }

    /// Parses the packet into a buffer that [`room`] made.
    ///
    /// Most packets are parsed here, without a call: a tenth of what a denied packet costs, see docs/bench/notes.md.
    #[inline(always)]
    pub fn read(self, start: Start, packet: &mut Packet) -> Result<(), Reason> {
        if parse_into(&Head(self), start, packet).is_ok() {
            // From here on it is where it was put, and nowhere else: copies would take room on the stack.
            // SAFETY: nothing is done.
            unsafe { asm!("{0} = {0}", inout(reg) &raw mut *packet => _, options(nostack)) };
            return Ok(());
        }
        *packet = room();
        self.read_in_full(start, packet)
    }

    /// The same with a call, for the packets that are rare.
    #[inline(always)]
    pub fn read_in_full(self, start: Start, packet: &mut Packet) -> Result<(), Reason> {
        let start = u32::from(matches!(start, Start::Ethernet));
        let code = enforcer_read(self.0, start, packet);
        if code == 0 {
            return Ok(());
        }
        Err(Reason::from_code(code as u8).unwrap_or(Reason::NoPolicy))
    }

    /// Whether this node would send to `source` by the interface by which this packet came in: then no other pod sent it. TC
    /// only. A bridge's ports have no routes of their own, so pods behind a bridge cannot be distinguished.
    #[inline(never)]
    pub fn is_route_back(self, source: &Ip, destination: &Ip) -> bool {
        // SAFETY: all zeroes are a request like any other.
        let mut request: bpf_fib_lookup = unsafe { MaybeUninit::zeroed().assume_init() };
        request.ifindex = self.ifindex();
        // The route back: the packet's source is the destination of the request.
        if source.is_v4() {
            request.family = AF_INET;
            request.__bindgen_anon_4.ipv4_dst = words(source)[3];
            request.__bindgen_anon_3.ipv4_src = words(destination)[3];
        } else {
            request.family = AF_INET6;
            request.__bindgen_anon_4.ipv6_dst = words(source);
            request.__bindgen_anon_3.ipv6_src = words(destination);
        }
        // SAFETY: the context is valid, and the length is that of the request.
        let answer = unsafe {
            bpf_fib_lookup_helper(
                self.0.cast(),
                &raw mut request,
                size_of::<bpf_fib_lookup>() as i32,
                0,
            )
        };
        // Whether the pod's hardware address is known, or the packet would fit, does not matter.
        let found = matches!(
            answer as u32,
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED
        );
        found && request.ifindex == self.ifindex()
    }

    /// The socket that it belongs to, or null. It may be a request socket or in TIME_WAIT, so the kernel does not let programs
    /// read its type, its protocol and a few other fields.
    ///
    /// Not an `Option` around a pointer: for `None` its other half is unset, and the verifier refuses to copy that.
    pub fn socket(self) -> *mut bpf_sock {
        // SAFETY: as above.
        unsafe { (*self.0).__bindgen_anon_2.sk }
    }

    /// The same socket with all fields, if it is a full one; else null.
    pub fn full_socket(self) -> *mut bpf_sock {
        let sk = self.socket();
        if sk.is_null() {
            return sk;
        }
        // SAFETY: `sk` is not null, which is all that the helper requires.
        unsafe { bpf_sk_fullsock(sk) }
    }

    /// The cgroup of its socket; 0 if it has no socket.
    pub fn cgroup(self) -> u64 {
        // SAFETY: the helper takes any skb.
        unsafe { bpf_skb_cgroup_id(self.0) }
    }

    /// The party of its socket: that of the deepest declared cgroup above it.
    #[inline(always)]
    pub fn party(self, active: Active) -> Party {
        match active.known_party(self.cgroup()) {
            Some(party) => party,
            None => enforcer_party(self.0, active.word()) as Party,
        }
    }
}

/// The party of an skb's socket. A global function, which the verifier checks once and separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_party(skb: *mut __sk_buff, active: u32) -> u32 {
    let skb = Skb(skb);
    // SAFETY: the helper takes any skb and level, and returns 0 for a level that does not exist.
    let above = |level: u32| unsafe { bpf_skb_ancestor_cgroup_id(skb.0, level as i32) };
    Active::of(active).party(skb.cgroup(), above).into()
}

/// Whether a checksum offload would overwrite bytes that a packet was judged by: 0 or 1. A global function, as above. TC
/// only.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_checksum(skb: *mut __sk_buff, packet: *const Packet) -> u32 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return 1;
    };
    let completion = Skb(skb).completion();
    u32::from(!completion.is_some_and(|completion| completion.is_harmless(packet)))
}

/// [`parse_into`] as a global function, which the verifier checks once and separately: the states of the parser do not
/// multiply with those of the caller.
///
/// Returns 0, or the number of the reason why the packet can not be parsed. `start` is 1 for a packet with an Ethernet header,
/// else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_read(skb: *mut __sk_buff, start: u32, packet: *mut Packet) -> u32 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_mut() }) else {
        return u32::from(Reason::NoPolicy.code());
    };
    let start = if start != 0 {
        Start::Ethernet
    } else {
        Start::Ip
    };
    match parse_into(&Skb(skb), start, packet) {
        Ok(()) => 0,
        Err(reason) => u32::from(reason.code()),
    }
}

/// An address as the kernel's four words, in network byte order.
fn words(ip: &Ip) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip.0;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

impl Skb {
    /// The address of bytes of the packet, if all of them are in the head and near its beginning: the verifier follows no
    /// offset beyond that.
    #[inline(always)]
    fn in_head(self, offset: usize, length: usize) -> Option<usize> {
        if offset >= DIRECT {
            return None;
        }
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let (at, past): (usize, usize);
        // SAFETY: sums of numbers, `at = data + offset` and `past = at + length`. Written in assembler, because the compiler
        // finds equivalent ones whose bounds the verifier does not follow. The mask bounds the offset for the verifier; the
        // offset is smaller already.
        unsafe {
            asm!(
                "{past} = {offset}",
                "{past} &= {mask}",
                "{at} = {data}",
                "{at} += {past}",
                "{past} = {at}",
                "{past} += {length}",
                at = out(reg) at,
                past = out(reg) past,
                offset = in(reg) offset,
                data = in(reg) data,
                mask = const DIRECT - 1,
                length = in(reg) length,
                options(pure, nomem, nostack),
            );
        }
        (past <= end).then_some(at)
    }
}

/// Defines a function that reads `N` words at an address, 5 at most, and one that reads the word with an index. They use
/// assembler and not a pointer: the compiler reads unaligned memory byte by byte, although programs, like the machines that
/// run them, may read unaligned words.
macro_rules! reader {
    ($all:ident, $one:ident, $word:ty, $kind:literal) => {
        /// # Safety
        ///
        /// All of them are in the head.
        #[inline(always)]
        // Unsafe, as it reads any address.
        unsafe fn $all<const N: usize>(at: usize) -> [$word; N] {
            const { assert!(N <= 5) };
            array::from_fn(|word| {
                // SAFETY: the caller's.
                unsafe {
                    match word {
                        0 => $one::<0>(at),
                        1 => $one::<1>(at),
                        2 => $one::<2>(at),
                        3 => $one::<3>(at),
                        _ => $one::<4>(at),
                    }
                }
            })
        }

        /// # Safety
        ///
        /// It is in the head.
        #[inline(always)]
        // Unsafe, as above.
        unsafe fn $one<const INDEX: usize>(at: usize) -> $word {
            let word: u64;
            // SAFETY: the caller's; one instruction.
            unsafe {
                asm!(
                    concat!("{word} = *(", $kind, " *)({at} + {offset})"),
                    word = out(reg) word,
                    at = in(reg) at,
                    offset = const INDEX * size_of::<$word>(),
                    options(pure, readonly, nostack),
                );
            }
            word as $word
        }
    };
}

reader!(read_words, read_word, u32, "u32");
reader!(read_long_words, read_long_word, u64, "u64");

/// Reads a [plain](PacketBytes::PLAIN) packet from the head of its skb.
struct Head(Skb);

impl Head {
    /// Like [`Skb::in_head`], for `N` elements of `SIZE` bytes, and for offsets that are constant in each branch: the
    /// verifier knows them, so they need no mask.
    #[inline(always)]
    fn at<const N: usize, const SIZE: usize>(&self, offset: usize) -> Option<usize> {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.0.0).data as usize, (*self.0.0).data_end as usize) };
        let (at, past): (usize, usize);
        // SAFETY: sums of numbers, as above.
        unsafe {
            asm!(
                "{at} = {data}",
                "{at} += {offset}",
                "{past} = {at}",
                "{past} += {length}",
                at = out(reg) at,
                past = out(reg) past,
                offset = in(reg) offset,
                data = in(reg) data,
                length = const N * SIZE,
                options(pure, nomem, nostack),
            );
        }
        (past <= end).then_some(at)
    }
}

impl PacketBytes for Head {
    const PLAIN: bool = true;

    #[inline(always)]
    fn load<const N: usize>(&self, _: usize) -> Option<[u8; N]> {
        None
    }

    #[inline(always)]
    fn near<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.at::<N, 1>(offset)?;
        // SAFETY: within the head.
        Some(unsafe { *(at as *const [u8; N]) })
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let at = self.at::<N, 4>(offset)?;
        // SAFETY: within the head, all of them.
        Some(unsafe { read_words(at) })
    }

    #[inline(always)]
    fn long_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let at = self.at::<N, 8>(offset)?;
        // SAFETY: as above.
        Some(unsafe { read_long_words(at) })
    }
}

impl Skb {
    /// The value at any offset of the packet: the helper also reads pages outside of the head.
    #[inline(always)]
    fn load_any<T: FromBytes>(self, offset: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the buffer is that long; the helper fills all of it or fails.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.0.cast(),
                offset as u32,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        if failed != 0 {
            return None;
        }
        // SAFETY: filled, and any bytes are one.
        Some(unsafe { value.assume_init() })
    }
}

impl PacketBytes for Skb {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.load_any(offset)
    }

    #[inline(always)]
    fn near<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        match self.in_head(offset, N) {
            // SAFETY: within the head.
            Some(at) => Some(unsafe { *(at as *const [u8; N]) }),
            None => self.load(offset),
        }
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        if let Some(at) = self.in_head(offset, N * 4) {
            // SAFETY: within the head, all of them.
            return Some(unsafe { read_words(at) });
        }
        self.load_any(offset)
    }

    fn long_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        if let Some(at) = self.in_head(offset, N * 8) {
            // SAFETY: as above.
            return Some(unsafe { read_long_words(at) });
        }
        self.load_any(offset)
    }

    /// Exclusive or, twice, with a number that the verifier does not know.
    fn opaque(&self, number: usize) -> usize {
        // SAFETY: the context is valid while the program runs.
        let unknown = unsafe { (*self.0).len } as usize;
        black_box(number ^ black_box(unknown)) ^ unknown
    }
}
