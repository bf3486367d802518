//! How full the maps are whose elements are counted anyway. Nothing here iterates over a map.

use std::sync::atomic::Ordering;

use enforcer_common::record::RecordCounter;

use super::{Kernel, layout};

impl Kernel {
    /// How many records of denials there are; rather too high than too low, see [`RecordCounter`].
    pub fn records_held(&self) -> u64 {
        let all = self.readers.record_counts.u64(RecordCounter::ALL);
        all.map_or(0, |all| all.load(Ordering::Relaxed))
    }

    /// How many interfaces have a role.
    pub fn interfaces_held(&self) -> u64 {
        self.attached.roles.interfaces().len() as u64
    }
}

/// The digest of the layout of the maps: agents of one layout take over each other's counters.
pub fn layout_digest() -> u64 {
    layout::DIGEST
}
