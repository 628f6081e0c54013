//! Ctrl-C: the first asks to stop after the current step, the second stops at once.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::INTERRUPTED;
use crate::output::complain;

/// Signals that are no further apart are one: `timeout` sends its to a program, and then to all of the program's group.
const ONE: Duration = Duration::from_secs(1);

/// A flag that Ctrl-C raises.
pub fn flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    let mut first: Option<Instant> = None;
    ctrlc::set_handler(move || match first {
        Some(time) if time.elapsed() > ONE => std::process::exit(INTERRUPTED.into()),
        Some(_) => {}
        None => {
            first = Some(Instant::now());
            raised.store(true, Ordering::SeqCst);
            complain("stopping after this step (or picture, if that is being decoded); once more to stop at once");
        }
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(flag)
}

/// What work that asks after each of its steps is told.
pub fn go_on_if(all_is_well: bool) -> ControlFlow<()> {
    if all_is_well { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
