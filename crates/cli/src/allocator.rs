//! The memory of the program. Tensors of many megabytes come and go several times a second; mimalloc keeps their pages and
//! asks for large ones, where the system's allocator returns them and pays for every 4 kB again.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Asks for large pages from now on.
#[allow(unsafe_code, reason = "the only way to set an option of the allocator")]
pub fn use_large_pages() {
    // SAFETY: sets a number that the allocator reads whenever it asks the system for memory; it may be set at any time.
    unsafe { libmimalloc_sys::mi_option_set_enabled_default(libmimalloc_sys::mi_option_large_os_pages, true) }
}
