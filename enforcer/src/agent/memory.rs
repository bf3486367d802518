//! Memory that only putting a policy in force needs.

/// Returns freed memory to the system. Reading a policy and loading programs take many times what
/// the agent needs otherwise, and the allocator would keep it.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the allocator's own function, which any thread may call at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
