//! A full disk and Ctrl-C: nothing is lost and nothing is left half-written.

use std::path::Path;
use std::process::Command;

use super::{SMALL, entries, fail, generate, model, succeed, training::RECIPE};

/// The one line of error of a command that cannot write files larger than so many blocks, which stops a write half-way as a full
/// disk does.
fn limited(blocks: usize, arguments: &str, folder: &Path) -> String {
    let program = env!("CARGO_BIN_EXE_pixart");
    let command = format!("trap '' XFSZ; ulimit -f {blocks}; exec {program} {arguments}");
    let output = Command::new("bash").args(["-c", &command]).current_dir(folder).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    stderr
}

/// A disk that fills up while a model is written in 8 bits.
#[test]
fn a_full_disk_leaves_no_model() {
    let folder = tempfile::tempdir().unwrap();
    // While a part is copied as it is, and while one is rounded.
    for from in [model("alpha-256"), model("alpha-256/transformer")] {
        let error = limited(16, &format!("quantize --model '{from}' --output rounded --quiet"), folder.path());
        assert!(error.starts_with("error: rounded/") && error.contains(".safetensors"), "{error}");
        assert!(entries(folder.path()).is_empty());
    }
}

/// A disk that fills up while a picture is written.
#[test]
fn a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    let message = fail(&generate(&model, &["x", "--output", "/dev/full/x.png"]), folder.path());
    assert!(message.contains("/dev/full"), "{message}");
    let error = limited(1, &format!("generate x --model '{model}' {} --output x.png", SMALL.join(" ")), folder.path());
    assert!(error.contains("x.png"), "{error}");
    assert!(entries(folder.path()).is_empty());
}

/// A disk that fills up while features or a checkpoint are written: what was there before stays.
#[test]
fn a_full_disk_ends_training_with_the_last_checkpoint_kept() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.toml"), RECIPE.replace("steps = 3", "steps = 2")).unwrap();
    succeed(&["train", "recipe.toml", "--output", "run"], folder.path());
    std::fs::write(folder.path().join("recipe.toml"), RECIPE.replace("steps = 3", "steps = 4")).unwrap();
    let checkpoints = folder.path().join("run/checkpoints");
    let before = entries(&checkpoints);
    assert_eq!(before.len(), 1);
    let error = limited(4, "train recipe.toml --output run", folder.path());
    assert!(error.contains("run/checkpoints/"), "{error}");
    assert_eq!(entries(&checkpoints), before, "only the last good checkpoint is there");
    let model = model("alpha-256");
    let features = format!("features --scenes 3 --size 64 --vae '{model}' --output features");
    let error = limited(1, &features, folder.path());
    assert!(error.contains("features/"), "{error}");
    assert!(entries(&folder.path().join("features")).iter().all(|path| !path.to_string_lossy().contains("shard")));
}

/// Ctrl-C between steps ends with the shell's code for it and leaves no picture.
#[test]
fn an_interrupt_stops_between_steps() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    let mut child = Command::new(env!("CARGO_BIN_EXE_pixart"))
        .args(["generate", "x", "--model", &model, "--steps", "999", "--width", "256", "--height", "256"])
        .current_dir(folder.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // So many steps take far longer than this.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(entries(folder.path()).is_empty());
}
