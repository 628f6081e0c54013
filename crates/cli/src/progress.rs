//! Progress bars on the terminal.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pixart::LoadProgress;
use pixart_weights::QuantiseProgress;

/// One bar at a time; nothing where the error output is no terminal or the user wants quiet.
pub struct Progress {
    quiet: bool,
    bar: Mutex<Option<(String, ProgressBar)>>,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        Self { quiet, bar: Mutex::new(None) }
    }

    /// Weights being read.
    pub fn load(&self, load: LoadProgress) {
        let name = format!("loading {}", load.part.name().replace('_', " "));
        self.show(&name, load.total, load.read, "{msg:24} {bar:30} {bytes} of {total_bytes}");
        if load.read >= load.total {
            self.clear();
        }
    }

    /// Weights being rounded to 8 bits.
    pub fn quantise(&self, done: QuantiseProgress) {
        let name = format!("rounding {}", done.part.name().replace('_', " "));
        self.show(&name, done.total, done.read, "{msg:24} {bar:30} {bytes} of {total_bytes}, {eta} left");
    }

    /// Solver steps done; after the last of them, pictures are decoded.
    pub fn step(&self, done: usize, total: usize) {
        if done == total {
            return self.show("decoding", 0, 0, "{msg:24} {spinner} {elapsed}");
        }
        self.show("drawing", total as u64, done as u64, "{msg:24} {bar:30} step {pos} of {len}, {eta} left");
    }

    /// Pictures that something was done with: drawn, or their features computed.
    pub fn pictures(&self, what: &str, done: usize, total: usize) {
        self.show(what, total as u64, done as u64, "{msg:24} {bar:30} {pos} of {len}, {eta} left");
    }

    /// Steps of training done, and how it goes.
    pub fn train(&self, done: u64, total: u64, how: &str) {
        self.show("training", total, done, "step {pos} of {len} {bar:20} {eta} left, {prefix}");
        if let Ok(bar) = self.bar.lock()
            && let Some((_, bar)) = bar.as_ref()
        {
            bar.set_prefix(how.to_string());
        }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some((_, bar)) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    fn show(&self, name: &str, total: u64, done: u64, template: &str) {
        // A display that another thread left broken is no reason to stop drawing.
        let Ok(mut current) = self.bar.lock() else { return };
        if self.quiet {
            return;
        }
        if current.as_ref().is_none_or(|(shown, _)| shown != name) {
            if let Some((_, old)) = current.take() {
                old.finish_and_clear();
            }
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            }
            bar.set_message(name.to_string());
            bar.enable_steady_tick(Duration::from_millis(200));
            *current = Some((name.to_string(), bar));
        }
        if let Some((_, bar)) = current.as_ref() {
            bar.set_position(done);
        }
    }
}
