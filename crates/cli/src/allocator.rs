//! The memory of the program. Tensors of many megabytes come and go several times a second; mimalloc keeps their pages and
//! asks for large ones, where the system's allocator returns them and pays for every 4 kB again.

use std::ffi::c_long;
use std::sync::atomic::{AtomicBool, Ordering};

use libmimalloc_sys::{mi_option_large_os_pages, mi_option_set_default, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// After how many milliseconds freed memory goes back to the system. The bindings lack it; its number is the same in
/// versions 2 and 3 of `mimalloc.h`.
const PURGE_DELAY: mi_option_t = 15;

/// Milliseconds within which what is freed may be asked for again, and so is not returned.
const A_MOMENT: c_long = 10;

/// Whether [`return_memory`] was called.
static ALWAYS_RETURNED: AtomicBool = AtomicBool::new(false);

/// Asks for large pages from now on, and keeps what is freed until the program ends.
pub fn keep_large_pages() {
    set(mi_option_large_os_pages, 1);
    set(PURGE_DELAY, -1);
}

/// Returns what is freed, or keeps it again, until it is said otherwise; after [`return_memory`] nothing is kept.
pub fn return_for_now(returned: bool) {
    if !ALWAYS_RETURNED.load(Ordering::Relaxed) {
        set(PURGE_DELAY, if returned { A_MOMENT } else { -1 });
    }
}

/// Returns what is freed to the system from now on, unless it is asked for again within a moment: pieces of the images that a
/// decoder goes through row by row are of many sizes, and would be kept for each.
pub fn return_memory() {
    ALWAYS_RETURNED.store(true, Ordering::Relaxed);
    set(PURGE_DELAY, A_MOMENT);
}

/// Sets an option that the user's environment does not set.
#[allow(unsafe_code, reason = "the only way to set an option of the allocator")]
fn set(option: mi_option_t, value: c_long) {
    // SAFETY: this sets a number that the allocator reads when it asks the system for memory or returns it; it may be set at any
    // time.
    unsafe { mi_option_set_default(option, value) };
}
