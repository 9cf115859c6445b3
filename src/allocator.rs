//! Gives the memory of large buffers back as soon as they are dropped.
//!
//! Batches, blocks and what was read of a stream are buffers of some 100 KiB to a few MiB, of many sizes. glibc takes the
//! first such one from the system, and when it is freed concludes that its size is an ordinary one, which is to be kept:
//! from then on they come from its arenas, one for each thread, where what is free lies between what is not. A drain of
//! scattered updates then holds half as much again as it has in use. A fixed threshold keeps them apart, each its own
//! mapping, for some processor time in page faults.

/// Buffers from this size on, in bytes, are mapped by themselves.
const MAPPED_FROM: i32 = 256 * 1024;

/// To be called once, before there are threads. Does nothing where the allocator is not glibc's.
pub fn give_large_buffers_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the allocator's one setting, for which there is no safe call")]
    // SAFETY: mallopt takes two numbers and no pointer. It changes a field of the allocator under the allocator's own lock,
    // and concerns allocations to come only: each one remembers by itself whether it is a mapping, so those that were made
    // before are freed as they should be.
    unsafe {
        // 0 would be a refusal, of which nothing follows but the memory that is kept.
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}
