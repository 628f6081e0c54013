//! Ctrl-C: the first asks to stop after the current step, the second stops at once.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::INTERRUPTED;
use crate::output::complain;

/// A flag that Ctrl-C raises.
pub fn flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED.into());
        }
        complain("stopping after this step (or picture, if that is being decoded); once more to stop at once");
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(flag)
}

/// What work that asks after each of its steps is told.
pub fn go_on_if(all_is_well: bool) -> ControlFlow<()> {
    if all_is_well { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
