//! Reads what the programs report: counters, records of denials, and announcements of new ones.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap},
    io,
    sync::atomic::Ordering,
};

use aya::{Ebpf, maps::RingBuf};
use enforcer_common::{
    cache::{self, CacheEntry},
    record::{RecordCounter, RecordKey, RecordValue},
    verdict::{Direction, Reason, counter},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    KernelError,
    maps::{Owned, mapped, take},
    state::{Kernel, KeyBytes, Readers, ValueBytes},
};

impl Readers {
    pub(super) fn take(bpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            counters: take(bpf, "COUNTERS")?,
            records: take(bpf, "RECORDS")?,
            record_counts: mapped(bpf, "RECORD_COUNTS")?,
            verdicts: take(bpf, "VERDICTS")?,
            wakes: Some(take(bpf, "WAKES")?),
        })
    }
}

/// Counters since the programs were loaded, summed over all CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<u32, u64>);

impl Counters {
    /// Any counter by its index, see [`counter`].
    pub fn get(&self, index: u32) -> u64 {
        self.0.get(&index).copied().unwrap_or(0)
    }

    /// Packets on a path, forward and reply.
    pub fn path(&self, number: u16) -> (u64, u64) {
        let of = |direction| self.get(counter::of_path(number, direction));
        (of(Direction::Forward), of(Direction::Reply))
    }

    /// Packets and calls that were dropped for a reason, and those that dry-run would have dropped.
    pub fn reason(&self, reason: Reason) -> (u64, u64) {
        let of = |dry_run| self.get(counter::of_reason(reason, dry_run));
        (of(false), of(true))
    }
}

impl Kernel {
    /// All counters that matter while the first `paths` path numbers are in use.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn counters(&self, paths: usize) -> Result<Counters, KernelError> {
        let last = counter::PATHS + 2 * u32::try_from(paths).unwrap_or(0);
        let indices = (0..=counter::CUT).chain(counter::PATHS..last.min(counter::COUNT));
        let mut all = BTreeMap::new();
        for index in indices {
            let sum = self.counter(index)?;
            if sum != 0 {
                all.insert(index, sum);
            }
        }
        Ok(Counters(all))
    }

    /// One counter by its index, see [`counter`].
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn counter(&self, index: u32) -> Result<u64, KernelError> {
        let values = self.readers.counters.get(&index, 0);
        let values = values.map_err(KernelError::map("read a counter"))?;
        Ok(values.iter().sum())
    }

    /// All records of denials, including what CPUs have counted since.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn records(&self) -> Result<Vec<(RecordKey, RecordValue)>, KernelError> {
        let records = self.readers.records.iter();
        let read = |record: Result<(KeyBytes, ValueBytes), _>| {
            record.map(|(key, value)| (zerocopy::transmute!(key), zerocopy::transmute!(value)))
        };
        let mut records: Vec<(RecordKey, RecordValue)> = records
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(KernelError::map("read the records"))?;
        if records.is_empty() {
            return Ok(records);
        }
        // Read after the records: what is added to a record meanwhile is missed now, but not
        // counted twice.
        let pending = self.pending()?;
        if !pending.is_empty() {
            for (key, value) in &mut records {
                value.count += pending.get(key).copied().unwrap_or(0);
            }
        }
        Ok(records)
    }

    /// Denials that were counted outside the records and whose record did not fit, or no longer
    /// exists: what [`counter::RECORDS_LOST`] will include later.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn pending_without_record(&self) -> Result<u64, KernelError> {
        let pending = self.pending()?;
        let lost = pending.iter().filter(|(key, _)| self.record(key).is_none());
        Ok(lost.map(|(_, count)| count).sum())
    }

    /// Denials that are in no record yet, by the record that they belong to.
    fn pending(&self) -> Result<StdHashMap<RecordKey, u64>, KernelError> {
        let mut pending = StdHashMap::new();
        for index in 0..cache::ENTRIES {
            let entries = self.entries(index)?;
            if entries.iter().all(|entry| entry.pending == 0) {
                continue;
            }
            // An entry that is being written may be read as half old and half new. Its version is
            // read first, so if the version is the same at a second reading, the first one was
            // consistent. The next reading gets the others.
            let again = self.entries(index)?;
            for (entry, again) in entries.iter().zip(again) {
                if entry.pending != 0
                    && !CacheEntry::is_written(entry.version)
                    && entry.version == again.version
                    && let Some(key) = entry.record()
                {
                    *pending.entry(key).or_default() += u64::from(entry.pending);
                }
            }
        }
        Ok(pending)
    }

    /// The entry with an index, of each CPU.
    fn entries(&self, index: u32) -> Result<Vec<CacheEntry>, KernelError> {
        let entries = self.readers.verdicts.get(&index, 0);
        let entries = entries.map_err(KernelError::map("read the cached verdicts"))?;
        let entry = |bytes: &_| zerocopy::transmute!(*bytes);
        Ok(entries.iter().map(entry).collect())
    }

    /// The record of a key, if it still exists, without repeats that have not been added to it yet.
    pub fn record(&self, key: &RecordKey) -> Option<RecordValue> {
        let bytes: KeyBytes = zerocopy::transmute!(*key);
        self.readers
            .records
            .get(&bytes, 0)
            .ok()
            .map(|value| zerocopy::transmute!(value))
    }

    /// Removes a record.
    ///
    /// # Errors
    ///
    /// It does not exist.
    pub fn delete_record(&mut self, key: &RecordKey) -> Result<(), KernelError> {
        let bytes: KeyBytes = zerocopy::transmute!(*key);
        self.readers
            .records
            .remove(&bytes)
            .map_err(KernelError::map("delete a record"))?;
        // Only afterwards, so that the counter is never below the number of records.
        let counter = key.counter();
        if let Some(counts) = self.readers.record_counts.u64(counter.word()) {
            counts.fetch_sub(counter.one(), Ordering::Relaxed);
        }
        if let Some(all) = self.readers.record_counts.u64(RecordCounter::ALL) {
            all.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The source of new records. May be called once, within a runtime.
    ///
    /// # Errors
    ///
    /// It was called before, or the runtime cannot watch the source.
    pub fn wakes(&mut self) -> Result<Wakes, KernelError> {
        let ring = self
            .readers
            .wakes
            .take()
            .ok_or(KernelError::Missing("second `WAKES`"))?;
        // SAFETY: the descriptor belongs to the map, which the ring buffer owns, keeps open as long
        // as it lives, and never exchanges.
        let watched = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        watched
            .map(Wakes)
            .map_err(|source| watch_failed(source.into_parts().1))
    }
}

/// Reports the keys of new records.
pub struct Wakes(AsyncFd<RingBuf<Owned>>);

impl Wakes {
    /// Waits, and returns all pending keys.
    ///
    /// # Errors
    ///
    /// The runtime cannot watch the ring buffer.
    pub async fn next(&mut self) -> Result<Vec<RecordKey>, KernelError> {
        loop {
            let mut guard = self.0.readable_mut().await.map_err(watch_failed)?;
            let ring = guard.get_inner_mut();
            let mut keys = Vec::new();
            while let Some(item) = ring.next() {
                if let Some(bytes) = item.first_chunk() {
                    let bytes: KeyBytes = *bytes;
                    keys.push(zerocopy::transmute!(bytes));
                }
            }
            guard.clear_ready();
            if !keys.is_empty() {
                return Ok(keys);
            }
        }
    }
}

fn watch_failed(source: io::Error) -> KernelError {
    KernelError::System {
        action: "wait for new records",
        source,
    }
}
