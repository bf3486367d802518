//! What the kernel programs and userspace must agree on: how bytes are read as a packet, how a
//! packet gets its verdict, and the layout of everything that crosses the kernel border.
//!
//! In reading order: [`addr`] (one form for IPv4 and IPv6), [`packet`] and [`parse`] (bytes to
//! [`packet::Packet`]), [`tables`], [`hosts`] and [`interfaces`] (what a compiled policy looks like to the decision),
//! [`vantage`] (where a packet is seen), [`judge`] and [`decide`] (the meaning of the product), [`tls`] (the lock that some
//! paths have), [`verdict`] (what comes out), [`mark`] (what one hook tells the next), [`cache`] (verdicts of a moment ago),
//! [`offload`] (what is written into a packet afterwards), [`record`] and [`denial`] (what is kept of denials), [`limits`].
//!
//! No I/O, no allocation, no `unsafe`, and no `cfg` on the target in [`parse`], [`judge`] and [`decide`]: what
//! the host tests is what the kernel runs. Numbers are in host byte order unless a field is a
//! byte array, which is in network byte order.

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
