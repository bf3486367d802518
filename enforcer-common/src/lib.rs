//! Code and data layouts that the kernel programs and userspace share: how bytes are parsed into a packet, how a packet
//! gets its verdict, and the layout of everything that crosses the kernel border.
//!
//! In reading order: [`addr`] (one form for IPv4 and IPv6), [`packet`] and [`parse`] (bytes to
//! [`packet::Packet`]), [`tables`], [`hosts`] and [`interfaces`] (the compiled policy as the decision reads it),
//! [`vantage`] (where a packet is seen), [`judge`] and [`decide`] (the decision itself), [`tls`] (the TLS check that some
//! paths require), [`verdict`] (the result), [`mark`] (what one hook passes on to the next), [`cache`] (recent verdicts),
//! [`offload`] (checksums that are written after the judgement), [`record`] and [`denial`] (records of denials), [`limits`].
//!
//! No I/O, no allocation, no `unsafe`, and no `cfg` on the target in [`parse`], [`judge`] and [`decide`]: the code that is
//! tested on the host is the code that runs in the kernel. Numbers are in host byte order; byte arrays are in network
//! byte order.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
pub mod cache;
pub mod decide;
pub mod denial;
pub mod hosts;
pub mod interfaces;
pub mod judge;
pub mod limits;
pub mod mark;
pub mod offload;
pub mod packet;
pub mod parse;
pub mod record;
pub mod tables;
pub mod tls;
pub mod vantage;
pub mod verdict;
