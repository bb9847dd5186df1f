//! How many weights stay near a core while many rows of activations pass by.

/// Bytes of them that a thread multiplies with all rows before it goes on to others: 256 KiB, so that they and as many rows stay in the second
/// cache; or five eighths of that cache on Intel's CPUs, where it is far faster than what lies behind it.
pub fn near() -> usize {
    const NEAR: usize = 256 << 10;
    #[cfg(target_arch = "x86_64")]
    if let Some(size) = intel_second_cache() {
        return NEAR.max(size * 5 / 8);
    }
    NEAR
}

/// Bytes of a core's second cache, where Intel made this CPU.
#[cfg(target_arch = "x86_64")]
fn intel_second_cache() -> Option<usize> {
    use std::arch::x86_64::__cpuid_count;
    const CACHES: u32 = 4;
    if !super::avx512::intel() || __cpuid_count(0, 0).eax < CACHES {
        return None;
    }
    // Of each cache: its kind, none after the last, and level; ways, partitions and bytes of a line; sets; all less 1.
    let caches = (0..16).map(|i| __cpuid_count(CACHES, i)).take_while(|cache| cache.eax & 31 != 0);
    let second = caches.into_iter().find(|cache| cache.eax >> 5 & 7 == 2)?;
    let parts = [second.ebx >> 22, second.ebx >> 12 & 1023, second.ebx & 4095, second.ecx];
    parts.iter().try_fold(1, |size: usize, &part| size.checked_mul(part as usize + 1))
}
