use std::sync::Arc;

use anyhow::Result;
use pixart::BenchOptions;

use crate::args::BenchArgs;
use crate::open;
use crate::output::print;
use crate::progress::Progress;

pub fn run(args: BenchArgs) -> Result<()> {
    let progress = Arc::new(Progress::new(args.model.compute.quiet));
    let builder = open::configured(&args.model, false, &progress)?;
    let mut pipeline = open::with_control(builder, args.control.as_deref()).open()?;
    let options = BenchOptions { size: args.size, runs: args.runs, warm_up: !args.no_warm_up, steps: args.steps };
    let report = pixart::bench(&mut pipeline, &options)?;
    progress.clear();
    if args.json {
        print(&serde_json::to_string(&report)?)?;
        return Ok(());
    }
    print(&format!(
        "{0}x{0}, {1} on {2}, {3} threads, medians of {4} runs",
        report.size, report.dtype, report.device, report.threads, report.runs
    ))?;
    let encode = report.encode_s.map_or("no text encoder".into(), |seconds| format!("{seconds:8.3} s"));
    print(&format!("load         {:8.3} s", report.load_s))?;
    print(&format!("encode       {encode}"))?;
    print(&format!("transformer  {:8.3} s a pass", report.transformer_s))?;
    if let Some(seconds) = report.controlled_s {
        print(&format!("controlled   {seconds:8.3} s a pass with the ControlNet"))?;
    }
    print(&format!("decode       {:8.3} s", report.decode_s))?;
    print(&format!("image        {:8.3} s for {} passes and a decode", report.image_s, args.steps))?;
    if let Some(bytes) = report.peak_rss_bytes {
        print(&format!("memory       {:8.3} GB at most", bytes as f64 / 1e9))?;
    }
    Ok(())
}
