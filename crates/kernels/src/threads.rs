//! When an operation is worth sharing among threads.

/// Multiplications of f32 that are worth a thread: to wake one that sleeps takes some fifty microseconds on a virtual machine, and
/// these eighty.
const MULTIPLICATIONS: usize = 4 << 20;

/// Threads among which so many multiplications are shared, of which `group` are done at once where one of f32 would be.
pub(crate) fn threads_for(multiplications: usize, group: usize) -> usize {
    (multiplications / (MULTIPLICATIONS * group)).clamp(1, rayon::current_num_threads())
}

/// How many pieces of an operation a thread takes at least, each of so many multiplications.
pub(crate) fn least_pieces_per_thread(multiplications: usize, group: usize) -> usize {
    MULTIPLICATIONS * group / multiplications.max(1)
}
