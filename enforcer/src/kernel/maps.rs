//! Takes maps out of the object that holds the programs.

use aya::{
    Ebpf,
    maps::{Map, MapData},
};

use super::{KernelError, mapped::Mapped};

/// A map that this process owns.
pub(super) type Owned = MapData;

/// Takes a map out of the object, so that it can be used while the programs are borrowed.
pub(super) fn take<T>(bpf: &mut Ebpf, name: &'static str) -> Result<T, KernelError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = bpf.take_map(name).ok_or(KernelError::Missing(name))?;
    T::try_from(map).map_err(KernelError::map("open a map of the kernel programs"))
}

/// Takes an array out of the object and maps it into memory.
pub(super) fn mapped(bpf: &mut Ebpf, name: &'static str) -> Result<Mapped, KernelError> {
    let Some(Map::Array(array)) = bpf.take_map(name) else {
        return Err(KernelError::Missing(name));
    };
    Mapped::new(&array).map_err(|source| KernelError::System {
        action: "share a map with the kernel programs",
        source,
    })
}
