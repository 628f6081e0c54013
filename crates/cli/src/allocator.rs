//! The memory of the program. Tensors of many megabytes come and go several times a second; mimalloc keeps their pages and
//! asks for large ones, where the system's allocator returns them and pays for every 4 kB again.

use libmimalloc_sys::{mi_option_large_os_pages, mi_option_set_default, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// After how many milliseconds freed memory goes back to the system. The bindings lack it; its number is the same in
/// versions 2 and 3 of `mimalloc.h`.
const PURGE_DELAY: mi_option_t = 15;

/// Asks for large pages from now on, and keeps what is freed until the program ends.
#[allow(unsafe_code, reason = "the only way to set an option of the allocator")]
pub fn keep_large_pages() {
    // SAFETY: these set numbers that the allocator reads when it asks the system for memory or returns it; they may be set
    // at any time.
    unsafe {
        mi_option_set_default(mi_option_large_os_pages, 1);
        mi_option_set_default(PURGE_DELAY, -1);
    }
}
