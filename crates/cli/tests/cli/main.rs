//! The program as a user meets it: what it draws, prints and leaves behind, and one clear line for bad input.

mod memory;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pixart_scenes::{Colour, Kind, Picture};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn fixture(name: &str) -> String {
    fixtures().join(name).display().to_string()
}

fn model(name: &str) -> String {
    fixtures().join("checkpoints").join(name).display().to_string()
}

fn pixart(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pixart")).args(arguments).current_dir(folder).output().unwrap()
}

fn succeed(arguments: &[&str], folder: &Path) -> String {
    let output = pixart(arguments, folder);
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    stdout
}

/// Runs what must fail: its one line of error. Nothing is left in the folder that was not there before.
fn fail(arguments: &[&str], folder: &Path) -> String {
    let before = entries(folder);
    let output = pixart(arguments, folder);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(entries(folder), before, "{arguments:?} left something behind");
    stderr
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// The text chunks of a PNG.
fn texts(path: &Path) -> HashMap<String, String> {
    let reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap())).read_info().unwrap();
    let info = reader.info();
    info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect()
}

fn pixels(path: &Path) -> Vec<u8> {
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    pixels
}

const SMALL: [&str; 7] = ["--steps", "2", "--width", "64", "--height", "48", "--no-resolution-binning"];

fn generate<'a>(model: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "--model", model], &SMALL[..], rest].concat()
}

/// The contract's main promise, through the program: the golden image, from a prompt on the command line.
#[test]
fn draws_the_image_that_diffusers_draws() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    let prompt = "A small cactus with a happy face in the Sahara desert.";
    let arguments = [
        "generate",
        prompt,
        "--model",
        &model,
        "--negative-prompt",
        "blurry, low quality",
        "--steps",
        "6",
        "--seed",
        "42",
        "--width",
        "96",
        "--height",
        "64",
        "--no-resolution-binning",
        "--clean-caption=false",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--output",
        "cactus.png",
    ];
    let line = succeed(&arguments, folder.path());
    for part in ["cactus.png", "seed 42", "96x64", "6 steps", "peak"] {
        assert!(line.contains(part), "{line}");
    }
    let (found, golden) =
        (pixels(&folder.path().join("cactus.png")), pixels(&fixtures().join("pipelines/dpm-solver-0.png")));
    assert!(found.iter().zip(&golden).all(|(a, b)| a.abs_diff(*b) <= 1));

    let texts = texts(&folder.path().join("cactus.png"));
    assert!(texts["parameters"].starts_with(&format!("{prompt}\nNegative prompt: blurry, low quality\nSteps: 6, ")));
    let json: serde_json::Value = serde_json::from_str(&texts["pixart"]).unwrap();
    assert_eq!((&json["seed"], &json["width"]), (&42.into(), &96.into()));
    assert_eq!(entries(folder.path()).len(), 1);
}

/// Encoding, drawing from embeddings with final latents written, decoding those: the same picture as in one go. The
/// same bytes with one thread and with two.
#[test]
fn stages_can_be_run_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let model = model("alpha-1024");
    succeed(&generate(&model, &["a red fox", "--seed", "3", "--output", "whole.png", "--threads", "1"]), folder.path());
    succeed(&["encode", "a red fox", "--model", &model, "--output", "fox.safetensors"], folder.path());
    let rest =
        ["--prompt-embeds", "fox.safetensors", "--seed", "3", "--output", "embeds.png", "--output-latents", "l.st"];
    succeed(&generate(&model, &rest), folder.path());
    std::fs::rename(at("l.st"), at("latents.safetensors")).unwrap();
    succeed(&["decode", "latents.safetensors", "--model", &model, "--output", "decoded.png"], folder.path());
    assert_eq!(pixels(&at("whole.png")), pixels(&at("embeds.png")));
    assert_eq!(pixels(&at("whole.png")), pixels(&at("decoded.png")));

    let arguments = generate(&model, &["a red fox", "--seed", "3", "--output", "two.png", "--threads", "2", "--quiet"]);
    assert_eq!(succeed(&arguments, folder.path()), "");
    assert_eq!(std::fs::read(at("whole.png")).unwrap(), std::fs::read(at("two.png")).unwrap());
}

#[test]
fn several_images_are_numbered_and_each_has_its_seed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let model = model("alpha-256");
    std::fs::write(at("prompts.txt"), "a red fox\n\n  two blue circles \n").unwrap();
    let rest = ["--prompts-file", "prompts.txt", "--num-images", "2", "--seed", "8", "--output", "out"];
    let lines = succeed(&generate(&model, &rest), folder.path());
    assert_eq!(lines.lines().count(), 4);
    assert_eq!(entries(&at("out")).len(), 4);
    let parameters = texts(&at("out/pixart-0004.png"));
    assert!(parameters["parameters"].starts_with("two blue circles\n"), "{parameters:?}");
    assert!(parameters["parameters"].contains("Seed: 9,"));

    // Alone, the last of them is the same picture; and a folder's pictures are not overwritten.
    succeed(&generate(&model, &["two blue circles", "--seed", "9", "--output", "out"]), folder.path());
    assert_eq!(pixels(&at("out/pixart-0004.png")), pixels(&at("out/pixart-0005.png")));
    succeed(
        &generate(&model, &["a red fox", "--seed", "9", "--num-images", "2", "--output", "fox.png"]),
        folder.path(),
    );
    assert!(at("fox-0001.png").exists() && at("fox-0002.png").exists());
}

#[test]
fn original_transformers_load_and_convert() {
    let folder = tempfile::tempdir().unwrap();
    let (base, file) = (model("alpha-256"), model("original-256.pth"));
    let rest = ["a red fox", "--seed", "1", "--output", "direct.png", "--transformer", &file];
    succeed(&generate(&base, &rest), folder.path());
    succeed(&["convert", &file, "--model", &base, "--output", "converted"], folder.path());
    succeed(&generate("converted", &["a red fox", "--seed", "1", "--output", "converted.png"]), folder.path());
    let at = |name: &str| pixels(&folder.path().join(name));
    assert_eq!(at("direct.png"), at("converted.png"));
    succeed(&generate(&base, &["a red fox", "--seed", "1", "--output", "base.png"]), folder.path());
    assert_ne!(at("direct.png"), at("base.png"));
}

#[test]
fn info_says_what_a_folder_holds_and_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let said = succeed(&["info", &model("alpha-1024")], folder.path());
    for part in ["PixArtAlphaPipeline", "PixArtTransformer2DModel", "f16", "LCMScheduler", "1024x1024", "parameters"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("problem"), "{said}");
    let said = succeed(&["info", &model("sigma-512")], folder.path());
    assert!(said.contains("PixArtSigmaPipeline") && said.contains("up to 300"), "{said}");

    std::fs::write(folder.path().join("model_index.json"), r#"{"_class_name": "PixArtAlphaPipeline"}"#).unwrap();
    let said = succeed(&["info", "."], folder.path());
    assert!(said.matches("problem").count() >= 4, "{said}");
}

#[test]
fn bench_reports_every_stage() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    let arguments = ["bench", "--model", &model, "--size", "64", "--runs", "2", "--dtype", "f32", "--json"];
    let said = succeed(&arguments, folder.path());
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    for name in ["load_s", "encode_s", "transformer_s", "decode_s", "image_s"] {
        assert!(report[name].as_f64().unwrap() > 0.0, "{name} in {report}");
    }
    assert!(report["image_s"].as_f64() > report["decode_s"].as_f64());
    let settings = ["size", "runs", "dtype", "device"].map(|name| report[name].to_string());
    assert_eq!(settings, ["64", "2", "\"f32\"", "\"cpu\""]);
    assert!(report["threads"].as_u64().unwrap() >= 1 && report["peak_rss_bytes"].is_number());
}

#[test]
fn a_prompt_over_the_limit_is_a_warning_that_shows_what_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    let prompt = "a red fox ".repeat(100) + "zebra";
    let output = pixart(&generate(&model, &[&prompt, "--output", "fox.png"]), folder.path());
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("120 tokens") && stderr.contains("zebra"), "{stderr}");
}

#[test]
fn bad_input_gets_one_line_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let alpha = model("alpha-256");
    let lcm = model("alpha-1024");
    let (part, wider) = (model("alpha-256/vae"), model("original-1024.pth"));
    std::fs::write(folder.join("empty.txt"), "\n \n").unwrap();
    std::fs::write(folder.join("binary.txt"), [0xff, 0xfe, 0x00]).unwrap();
    std::fs::write(folder.join("cut.pth"), &std::fs::read(model("original-256.pth")).unwrap()[..5000]).unwrap();
    std::fs::write(folder.join("noise.safetensors"), [7; 100]).unwrap();
    std::fs::write(folder.join("scheduler.json"), r#"{"_class_name": "DDIMScheduler", "prediction_type": "flow"}"#)
        .unwrap();
    std::fs::create_dir(folder.join("stable")).unwrap();
    std::fs::write(folder.join("stable/model_index.json"), r#"{"_class_name": "StableDiffusionPipeline"}"#).unwrap();
    let tensors = |name: &str, tensor: &str, shape: &[usize], value: f32| {
        let tensor_of = candle_core::Tensor::full(value, shape, &candle_core::Device::Cpu).unwrap();
        pixart_weights::write_tensors(&folder.join(name), &[(tensor, &tensor_of)]).unwrap();
    };
    tensors("nan.safetensors", "latents", &[1, 4, 32, 32], f32::NAN);
    tensors("flat.safetensors", "latents", &[4, 32, 32], 0.0);
    tensors("empty.safetensors", "latents", &[1, 4, 0, 8], 0.0);
    tensors("no-tokens.safetensors", "prompt_embeds", &[1, 0, 32], 0.0);
    tensors("wide.safetensors", "prompt_embeds", &[1, 5, 48], 0.0);
    tensors("nan-embeds.safetensors", "prompt_embeds", &[1, 5, 32], f32::NAN);
    let cases: &[(&[&str], &str)] = &[
        (&["x", "--model", "nowhere"], "no such folder"),
        (&["x", "--model", "stable"], "StableDiffusionPipeline"),
        (&["x", "--model", &alpha, "--scheduler", "magic"], "unipc"),
        (&["x", "--model", &alpha, "--scheduler-config", "scheduler.json"], "prediction_type"),
        (&["x", "--model", &alpha, "--scheduler-config", "missing.json"], "missing.json"),
        (&["x", "--model", &alpha, "--width", "100", "--height", "96", "--no-resolution-binning"], "96 and 112"),
        (&["x", "--model", &alpha, "--steps", "0"], "zero steps"),
        (&["x", "--model", &lcm, "--steps", "51"], "50"),
        (&["x", "--model", &alpha, "--guidance-scale", "NaN"], "NaN"),
        (&["x", "--model", &alpha, "--num-images", "0"], "zero images"),
        (&["--model", &alpha, "--prompts-file", "missing.txt"], "missing.txt"),
        (&["--model", &alpha, "--prompts-file", "empty.txt"], "no prompt"),
        (&["--model", &alpha, "--prompts-file", "binary.txt"], "UTF-8"),
        (&["--model", &alpha, "--prompt-embeds", "noise.safetensors"], "noise.safetensors"),
        (&["x", "--model", &alpha, "--latents", "noise.safetensors"], "noise.safetensors"),
        (&["x", "--model", &alpha, "--transformer", "cut.pth"], "cut.pth"),
        (&["x", "--model", &alpha, "--transformer", "missing.pth"], "missing.pth"),
        (&["x", "--model", &alpha, "--vae", "noise.safetensors"], "noise.safetensors"),
        (&["x", "--model", &alpha, "--latents", "nan.safetensors"], "finite"),
        (&["x", "--model", &alpha, "--latents", "flat.safetensors"], "[4, 32, 32]"),
        (&["--model", &alpha, "--prompt-embeds", "no-tokens.safetensors"], "[1, 0, 32]"),
        (&["--model", &alpha, "--prompt-embeds", "wide.safetensors"], "48 wide"),
        (&["--model", &alpha, "--prompt-embeds", "nan-embeds.safetensors"], "finite"),
        (&["--model", &alpha, "--prompt-embeds", "flat.safetensors"], "prompt_embeds"),
        (&["x", "--model", &alpha, "--num-images", "18446744073709551615"], "images"),
        (&["x", "--model", &alpha, "--width", "4000000000"], "4000000000"),
        (&["x", "--model", &alpha, "--vae", "noise.safetensors", "--output", "made/by/mistake/"], "noise.safetensors"),
        (&["x", "--model", &alpha, "--transformer", &wider], "heads"),
        (&["x", "--model", &part], "AutoencoderKL"),
        (&["x", "--model", &alpha, "--output-latents", "/dev/null"], "/dev/null"),
        (&["x", "--model", &alpha, "--output", "same.png", "--output-latents", "same.png"], "same.png"),
        (&["x", "--model", &alpha, "--output", "picture.jpg"], ".jpg"),
        (&["x", "--model", &alpha, "--output", "no/such/folder/x.png"], "no/such/folder"),
        (&["x", "--model", &alpha, "--output", "/proc/pictures/"], "/proc/pictures"),
        (&["x", "--model", &alpha, "--output-latents", "no/such/l.safetensors"], "no/such"),
    ];
    for (rest, part) in cases {
        let message = fail(&[&["generate", "--device", "cpu"], *rest].concat(), folder);
        assert!(message.contains(part), "{rest:?}: {message:?} should say {part:?}");
    }
    if cfg!(not(feature = "cuda")) {
        let message = fail(&["generate", "x", "--model", &alpha, "--device", "cuda:3"], folder);
        assert!(message.contains("--features cuda"), "{message}");
    }
    let message = fail(&["decode", "noise.safetensors", "--model", &alpha, "--output", "x.png"], folder);
    assert!(message.contains("noise.safetensors"), "{message}");
    for (file, part) in
        [("nan.safetensors", "finite"), ("empty.safetensors", "decoded"), ("flat.safetensors", "4, height")]
    {
        let message = fail(&["decode", file, "--model", &alpha, "--output", "x.png"], folder);
        assert!(message.contains(part), "{message}");
    }
    let message = fail(&["convert", "cut.pth", "--output", "converted"], folder);
    assert!(message.contains("cut.pth"), "{message}");
    let message = fail(&["bench", "--model", &alpha, "--size", "50"], folder);
    assert!(message.contains("16"), "{message}");
    let message = fail(&["bench", "--model", &alpha, "--size", "4000000000"], folder);
    assert!(message.contains("4000000000"), "{message}");
}

/// Weights that a config leaves unused are drawn without, but not in silence.
#[test]
fn weights_that_do_not_fit_the_config_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").args(["-r", &model("alpha-256"), "model"]).current_dir(folder.path()).status();
    assert!(copied.unwrap().success());
    let config = folder.path().join("model/transformer/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"num_layers\": 2", "\"num_layers\": 1")).unwrap();
    let output = pixart(&generate("model", &["x", "--output", "x.png"]), folder.path());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("transformer_blocks.1"), "{stderr}");

    std::fs::write(&config, text.replace("\"num_layers\": 2", "\"num_layers\": 0")).unwrap();
    assert!(fail(&generate("model", &["x"]), folder.path()).contains("num_layers"));
}

/// A model in 8 bits draws what the model it was made of draws when it is rounded while it is read, and nearly what it draws
/// in full precision.
#[test]
fn draws_in_8_bits() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    std::fs::write(folder.path().join("prompts.txt"), "a red fox\na blue bird\n").unwrap();
    let line = succeed(&["quantize", "--model", &model, "--output", "rounded"], folder.path());
    assert!(line.contains("int8: text encoder") && line.contains("transformer") && line.contains("peak"), "{line}");
    succeed(&["quantize", "--model", &model, "--calibrate", "prompts.txt", "--output", "fitted"], folder.path());
    let part = format!("{model}/transformer");
    succeed(&["quantize", "--model", &part, "--scheme", "int8-weights", "--output", "part"], folder.path());
    let draw = |model: &str, name: &str, more: &[&str]| {
        let arguments = ["a red fox", "--seed", "1", "--output", name];
        succeed(&generate(model, &[&arguments[..], more].concat()), folder.path());
        (pixels(&folder.path().join(name)), texts(&folder.path().join(name))["pixart"].clone())
    };
    let (exact, _) = draw(&model, "exact.png", &[]);
    let tiled = draw(&model, "tiled.png", &["--vae-tiling"]).0;
    assert!(exact.iter().zip(&tiled).all(|(a, b)| a.abs_diff(*b) <= 4), "decoding row after row changes a picture");
    let (stored, about) = draw("rounded", "stored.png", &[]);
    let about: serde_json::Value = serde_json::from_str(&about).unwrap();
    assert_eq!(about["dtype"], "int8", "{about}");
    assert_eq!(stored, draw(&model, "read.png", &["--dtype", "int8"]).0);
    assert_eq!(stored, draw(&model, "again.png", &["--dtype", "int8", "--threads", "1"]).0);
    for (name, found) in [
        ("stored", &stored),
        ("fitted", &draw("fitted", "fitted.png", &[]).0),
        ("part", &draw(&model, "part.png", &["--transformer", "part"]).0),
        ("weights", &draw(&model, "weights.png", &["--dtype", "int8-weights"]).0),
    ] {
        let difference: u32 = exact.iter().zip(found).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        let mean = f64::from(difference) / exact.len() as f64;
        assert!(mean > 0.0 && mean < 12.0, "{name}: {mean}");
    }
    let before = entries(folder.path());
    for (arguments, parts) in [
        (&["--model", "rounded", "--output", "new"][..], &["in int8 already"][..]),
        (&["--model", &model, "--output", "rounded"], &["rounded: exists already"]),
        (&["--model", &model, "--output", "new", "--parts", "controlnet"], &["controlnet"]),
        (&["--model", &part, "--output", "new", "--parts", "transformer"], &["--parts goes with a model folder"]),
        (&["--model", &part, "--output", "new", "--calibrate", "prompts.txt"], &["--calibrate draws pictures"]),
        (&["--model", "nowhere", "--output", "new"], &["nowhere"]),
        (
            &["--model", &model, "--output", "new", "--scheme", "int8-weights", "--calibrate", "prompts.txt"],
            &["--calibrate goes with the scheme int8"],
        ),
    ] {
        let message = fail(&[&["quantize"], arguments].concat(), folder.path());
        assert!(parts.iter().all(|part| message.contains(part)), "{arguments:?}: {message}");
    }
    for (option, value, known) in [("--scheme", "int3", "int8-weights"), ("--parts", "unet", "text-encoder")] {
        let output = pixart(&["quantize", "--model", &model, "--output", "new", option, value], folder.path());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(value) && stderr.contains(known), "{stderr}");
    }
    assert_eq!(entries(folder.path()), before);
}

/// A disk that fills up while a model is written in 8 bits.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_pixart");
    let command = format!(
        "trap '' XFSZ; ulimit -f 16; exec {program} quantize --model '{}' --output rounded --quiet",
        model("alpha-256")
    );
    let output = Command::new("bash").args(["-c", &command]).current_dir(folder.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("safetensors") && stderr.trim_end().lines().count() == 1, "{stderr}");
    assert!(entries(folder.path()).is_empty());
}

/// A disk that fills up while a picture is written.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    let message = fail(&generate(&model, &["x", "--output", "/dev/full/x.png"]), folder.path());
    assert!(message.contains("/dev/full"), "{message}");
    // A limit on the size of files stops a write half-way, as a full disk does.
    let program = env!("CARGO_BIN_EXE_pixart");
    let command = format!(
        "trap '' XFSZ; ulimit -f 1; exec {program} generate x --model '{model}' {} --output x.png",
        SMALL.join(" ")
    );
    let output = Command::new("bash").args(["-c", &command]).current_dir(folder.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("x.png") && stderr.trim_end().lines().count() == 1, "{stderr}");
    assert!(entries(folder.path()).is_empty());
}

/// Ctrl-C between steps ends with the shell's code for it and leaves no picture.
#[test]
#[cfg(unix)]
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

#[test]
fn help_has_examples_and_shells_have_completions() {
    let folder = tempfile::tempdir().unwrap();
    assert!(succeed(&["generate", "--help"], folder.path()).contains("Examples:"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(succeed(&["completions", shell], folder.path()).contains("prompts-file"), "{shell}");
    }
}

const RECIPE: &str = r#"
steps = 3
batch_size = 2
checkpoint_every = 2
optimizer = { lr = 1e-3 }
data.scenes = { size = 16, crop = 8 }
stage.autoencoder = { kl_weight = 1e-4, edge_weight = 1.0, network = { block_out_channels = [8], norm_num_groups = 4, layers_per_block = 1 } }
"#;

#[test]
fn trains_an_autoencoder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
    let train = ["train", "recipe.toml", "--output", "run", "--device", "cpu"];
    let printed = succeed(&train, folder.path());
    let lines: Vec<_> = printed.lines().collect();
    let [second, third, result] = lines[..] else { panic!("{printed}") };
    assert!(second.starts_with("step 2: loss ") && second.contains("saved run/checkpoints/step-00000002"), "{printed}");
    assert!(third.starts_with("step 3: ") && result.starts_with("run/network, peak "), "{printed}");
    let weights = std::fs::read(folder.path().join("run/network/diffusion_pytorch_model.safetensors")).unwrap();
    // A run that is done gives its result once more.
    succeed(&train, folder.path());
    let again = std::fs::read(folder.path().join("run/network/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(weights == again);

    let run = folder.path().join("run");
    std::fs::write(folder.path().join("other.toml"), format!("seed = 7{RECIPE}")).unwrap();
    let before = entries(&run);
    assert!(fail(&["train", "other.toml", "--output", "run"], folder.path()).contains("made by another recipe"));
    assert_eq!(entries(&run), before);
    for (recipe, message) in [
        (format!("learning_rate = 1{RECIPE}"), "unknown field `learning_rate`"),
        (RECIPE.replace("steps = 3", "steps = -3"), "line 2"),
        (RECIPE.replace("scenes", "scene"), "unknown variant `scene`"),
    ] {
        std::fs::write(folder.path().join("bad.toml"), recipe).unwrap();
        let error = fail(&["train", "bad.toml", "--output", "bad"], folder.path());
        assert!(error.contains("bad.toml") && error.contains(message), "{error}");
    }
    assert!(fail(&["train", "missing.toml", "--output", "bad"], folder.path()).contains("missing.toml"));
}

/// As a user with a folder of pictures does it: features, a LoRA, a picture with it.
#[test]
fn follows_edges_and_draws_over_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // A dark square on light paper; a mask of the left half, one of another size, and pictures that cannot be used.
    let square =
        |x: u32, y: u32| image::Rgb([if (20..44).contains(&x) && (12..36).contains(&y) { 30u8 } else { 230 }; 3]);
    image::RgbImage::from_fn(64, 48, square).save(path("square.png")).unwrap();
    image::GrayImage::from_fn(64, 48, |x, _| image::Luma([255 * u8::from(x < 32)])).save(path("left.png")).unwrap();
    image::GrayImage::new(48, 64).save(path("tall.png")).unwrap();
    image::GrayImage::new(900, 20).save(path("strip.png")).unwrap();
    std::fs::write(path("text.png"), "no picture").unwrap();
    std::fs::write(path("empty.png"), "").unwrap();

    let said =
        succeed(&["control-image", "square.png", "--control-type", "canny", "--output", "edges.png"], folder.path());
    assert_eq!(said.trim(), "edges.png  64x48  canny");
    // Without a word it looks at the picture: a light one is a drawing, edges on black are ready.
    for (picture, kind) in [("square.png", "lineart"), ("edges.png", "none")] {
        let said = succeed(&["control-image", picture, "--output", "found.png"], folder.path());
        assert_eq!(said.trim(), format!("found.png  64x48  {kind}"));
    }
    assert_eq!(pixels(&path("found.png")), pixels(&path("edges.png")));
    let edges = image::open(path("edges.png")).unwrap().into_luma8();
    assert_eq!((edges.get_pixel(32, 24)[0], edges.get_pixel(2, 2)[0]), (0, 0));
    assert!((17..=22).any(|x| edges.get_pixel(x, 24)[0] == 255));
    let hed = fixture("control/hed-network.pth");
    succeed(
        &["control-image", "square.png", "--control-type", "hed", "--hed", &hed, "--output", "soft.png"],
        folder.path(),
    );
    assert!(image::open(path("soft.png")).unwrap().into_luma8().pixels().any(|pixel| !matches!(pixel[0], 0 | 255)));

    // A ControlNet for the model's two blocks, made by training it for a step.
    let model = model("alpha-256");
    std::fs::create_dir(path("photos")).unwrap();
    for name in ["a", "b"] {
        std::fs::copy(path("square.png"), path(&format!("photos/{name}.png"))).unwrap();
        std::fs::write(path(&format!("photos/{name}.txt")), "a dark square").unwrap();
    }
    succeed(
        &["features", "photos", "--model", &model, "--control-type", "canny", "--size", "64", "--output", "features"],
        folder.path(),
    );
    let recipe = format!(
        "steps = 2\nbatch_size = 2\nvalidate_every = 2\noptimizer.lr = 1e-2\ndata.features = \"features\"\n\
         [stage.controlnet]\nbase = {model:?}\nnum_layers = 1\nvalidation = {{ steps = 2 }}\n"
    );
    std::fs::write(path("control.toml"), &recipe).unwrap();
    assert!(succeed(&["train", "control.toml", "--dry-run"], folder.path()).contains("M trained"));
    succeed(&["train", "control.toml", "--output", "run"], folder.path());

    let draw = |name: &str, more: &[&str]| {
        let path = format!("{name}.png");
        succeed(&generate(&model, &[&["a red fox", "--seed", "3", "--output", &path], more].concat()), folder.path());
        pixels(&folder.path().join(path))
    };
    let plain = draw("plain", &[]);
    let follow = ["--control", "run/network", "--control-image", "square.png", "--control-type", "canny"];
    let controlled = draw("controlled", &[&follow[..], &["--save-control", "seen.png"]].concat());
    assert!(controlled != plain);
    assert_eq!(pixels(&path("seen.png")), pixels(&path("edges.png")));
    // Edges are found at the size that is drawn: those of a larger picture are as thin there, and as many.
    let large = image::open(path("square.png")).unwrap().resize(256, 192, image::imageops::FilterType::Nearest);
    large.save(path("large.png")).unwrap();
    let follow_large = ["--control", "run/network", "--control-image", "large.png", "--control-type", "canny"];
    draw("of-large", &[&follow_large[..], &["--save-control", "seen-large.png"]].concat());
    let edges_of = |name: &str| {
        let map = image::open(path(name)).unwrap().into_luma8();
        assert_eq!(map.dimensions(), (64, 48), "{name}");
        map.pixels().filter(|pixel| pixel[0] == 255).count()
    };
    assert!(edges_of("seen-large.png").abs_diff(edges_of("edges.png")) < 12);
    let ready = ["--control", "run/network", "--control-image", "seen.png"];
    assert!(draw("ready", &ready) == controlled);
    assert!(draw("never", &[&follow[..], &["--control-end", "0"]].concat()) == plain);

    let over = draw("over", &["--init-image", "square.png"]);
    assert!(over != plain && over != draw("more", &["--init-image", "square.png", "--strength", "1"]));
    assert!(draw("masked", &["--init-image", "square.png", "--mask", "left.png"]) != over);

    let converted = ["convert", &fixture("control/original.pth"), "--output", "converted"];
    assert_eq!(succeed(&converted, folder.path()).trim(), "converted  ControlNet: 2 copied blocks");
    assert!(path("converted/config.json").exists());
    // A folder's own ControlNet goes with it.
    let whole = ["convert", &model, "--output", "whole"];
    succeed(&whole, folder.path());
    assert!(!path("whole/controlnet").exists());
    std::fs::create_dir(path("whole/controlnet")).unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::copy(path("run/network").join(file), path("whole/controlnet").join(file)).unwrap();
    }
    succeed(&["convert", "whole", "--output", "again"], folder.path());
    let own = &["a red fox", "--seed", "3", "--control-image", "seen.png", "--output", "own.png"];
    succeed(&generate("again", own), folder.path());
    assert!(pixels(&path("own.png")) == controlled);
    let grey = ["features", "photos", "--model", &model, "--control-type", "none", "--output", "grey"];
    assert!(fail(&grey, folder.path()).contains("finds no edges"));

    for (more, message) in [
        (&["--control-image", "square.png"][..], "name one with --control"),
        (&["--control-image", "missing.png", "--control", "run/network"], "missing.png"),
        (&["--control-image", "empty.png", "--control", "run/network"], "empty.png"),
        (
            &["--control-image", "square.png", "--control", "run/network", "--save-control", "bad.png"],
            "both the picture",
        ),
        (&["--control-image", "text.png", "--control", "run/network"], "text.png"),
        (&["--control-image", "strip.png", "--control", "run/network"], "900x20"),
        (&["--control-image", "square.png", "--control", "converted"], "[16, 16]"),
        (&["--control-image", "square.png", "--control", "run/network", "--control-type", "hed"], "HED"),
        (&["--control-image", "square.png", "--control", "run/network", "--control-scale", "-1"], "control scale"),
        (&["--control-image", "square.png", "--control", "run/network", "--control-start", "2"], "between 0 and 1"),
        (&["--control-image", "square.png", "--control", "missing"], "missing"),
        (&["--init-image", "strip.png"], "900x20"),
        (&["--init-image", "text.png"], "text.png"),
        (&["--init-image", "square.png", "--strength", "1.5"], "strength of 1.5"),
        (&["--init-image", "square.png", "--strength", "0"], "strength of 0"),
        (&["--init-image", "square.png", "--strength", "0.01"], "leaves none"),
        (&["--init-image", "square.png", "--mask", "tall.png"], "48x64"),
    ] {
        let error = fail(&generate(&model, &[&["x", "--output", "bad.png"], more].concat()), folder.path());
        assert!(error.contains(message), "{more:?}: {error}");
        assert!(!path("bad.png").exists());
    }
}

#[test]
fn trains_a_lora_on_a_folder_of_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    std::fs::create_dir(&photos).unwrap();
    let model = model("alpha-256");
    for (name, caption) in [("a", "a red fox"), ("b", "a blue cup")] {
        let picture = photos.join(format!("{name}.png"));
        succeed(&generate(&model, &[caption, "--seed", "1", "--output", picture.to_str().unwrap()]), folder.path());
        std::fs::write(picture.with_extension("txt"), caption).unwrap();
    }
    std::fs::write(photos.join("c.png"), "no picture").unwrap();
    let features = ["features", "photos", "--model", &model, "--output", "features"];
    let output = pixart(&features, folder.path());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("skipped photos/c.png"), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "features: 2 pictures, 1 skipped\n");

    let recipe = format!(
        "steps = 3\nbatch_size = 2\nvalidate_every = 3\noptimizer.lr = 1e-3\ndata.features = \"features\"\n\
         [stage.diffusion]\nbase = {model:?}\nlora.rank = 2\nvalidation = {{ steps = 2 }}\n"
    );
    std::fs::write(folder.path().join("lora.toml"), &recipe).unwrap();
    let needs = succeed(&["train", "lora.toml", "--dry-run"], folder.path());
    assert!(needs.contains("M trained") && needs.contains("GB") && needs.contains("TFLOP"), "{needs}");
    assert!(!folder.path().join("run").exists());
    succeed(&["train", "lora.toml", "--output", "run"], folder.path());
    assert!(folder.path().join("run/validation/step-00000003.png").exists());
    let draw = |name: &str, more: &[&str]| {
        let path = format!("{name}.png");
        succeed(&generate(&model, &[&["a red fox", "--seed", "3", "--output", &path], more].concat()), folder.path());
        pixels(&folder.path().join(path))
    };
    let (plain, adapted) = (draw("plain", &[]), draw("adapted", &["--lora", "run/network"]));
    assert!(plain != adapted);
    assert!(plain == draw("none", &["--lora", "run/network", "--lora-scale", "0"]));

    // Merged into the weights it draws the same; in f16 nearly so.
    succeed(&["convert", &model, "--lora", "run/network", "--output", "merged"], folder.path());
    let merged = |name: &str, folder_name: &str| {
        let path = format!("{name}.png");
        succeed(&generate(folder_name, &["a red fox", "--seed", "3", "--output", &path]), folder.path());
        pixels(&folder.path().join(path))
    };
    assert!(merged("merged", "merged") == adapted);
    let half = ["convert", "merged", "--dtype", "f16", "--scheduler", "lcm", "--output", "half"];
    succeed(&half, folder.path());
    let size = |name: &str| {
        std::fs::metadata(folder.path().join(name).join("transformer/diffusion_pytorch_model.safetensors"))
            .unwrap()
            .len()
    };
    assert!((size("half") as f64) < 0.6 * size("merged") as f64);
    let index = std::fs::read_to_string(folder.path().join("half/model_index.json")).unwrap();
    assert!(index.contains("LCMScheduler"), "{index}");
    assert!(merged("half", "half") != adapted);

    // So does a LoRA that is stored in half the space.
    succeed(&["convert", "run/network", "--dtype", "f16", "--output", "lora-half"], folder.path());
    let lora = std::fs::read(folder.path().join("lora-half/adapter_model.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&lora[8..]).into_owned();
    assert!(header.contains("\"F16\"") && !header.contains("\"F32\""));
    let distance = |other: &[u8]| adapted.iter().zip(other).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    let (near, far) = (distance(&draw("half-lora", &["--lora", "lora-half"])), distance(&plain));
    assert!(4 * near < far, "{near}, {far}");

    let refused = |arguments: &[&str], message: &str| {
        let error = fail(arguments, folder.path());
        assert!(error.contains(message), "{arguments:?}: {error}");
    };
    refused(&["convert", "half", "--output", "merged"], "exists already");
    refused(&["convert", "half", "--model", "merged", "--output", "other"], "--model goes with a .pth");
    refused(&["convert", "photos", "--output", "other"], "no model_index.json");
    refused(&["convert", "photos", "--dtype", "f16", "--output", "other"], "nor a .safetensors file");
    refused(&generate(&model, &["x", "--lora", "photos"]), "there is no adapter");
    let other = self::model("alpha-1024");
    refused(&generate(&other, &["x", "--lora", "run/network"]), "another model's");
    refused(&["features", "nothing", "--model", &model, "--output", "none"], "is not there");
    refused(&["features", "photos", "--model", &other, "--output", "features"], "choose another output folder");
    std::fs::write(folder.path().join("bad.toml"), recipe.replace("\"features\"", "\"photos\"")).unwrap();
    refused(&["train", "bad.toml", "--output", "bad"], "has no features.json");
}

/// Where no model is named, the one in the program draws, and shows what it is asked for.
#[test]
fn draws_with_a_model_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = ONE_OBJECT.map(|(prompt, ..)| prompt).join("\n");
    std::fs::write(folder.path().join("prompts.txt"), prompts).unwrap();
    let arguments = ["generate", "--prompts-file", "prompts.txt", "--seed", "1", "--output", "pictures"];
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixart"));
        // The user's cache stays as it is.
        command.env("XDG_CACHE_HOME", folder.path().join("cache")).env("HOME", folder.path());
        command.args(arguments).current_dir(folder.path()).output().unwrap()
    };
    let output = run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let paths = entries(&folder.path().join("pictures"));
    assert_eq!(paths.len(), ONE_OBJECT.len());
    let mut right = 0;
    for (path, (_, kind, colour)) in paths.iter().zip(ONE_OBJECT) {
        let seen = pixart_scenes::read(&Picture::from_rgb(128, 128, pixels(path)).unwrap());
        right += usize::from(seen.objects.iter().any(|seen| seen.kind == Some(kind) && seen.colour == colour));
    }
    assert!(right >= LEAST_RIGHT, "{right} of {} pictures show what was asked for", ONE_OBJECT.len());
    assert!(run().status.success(), "the model is there already");
}

const LEAST_RIGHT: usize = 6;

const ONE_OBJECT: [(&str, Kind, Colour); 10] = [
    ("a large red square on a grey background", Kind::Square, Colour::Red),
    ("a blue circle on a pale pink background", Kind::Circle, Colour::Blue),
    ("a large yellow sun in the sky", Kind::Sun, Colour::Yellow),
    ("a green tree on a pale blue background", Kind::Tree, Colour::Green),
    ("a red heart on a pale yellow background", Kind::Heart, Colour::Red),
    ("a large purple ring on a pale green background", Kind::Ring, Colour::Purple),
    ("an orange triangle at sea", Kind::Triangle, Colour::Orange),
    ("a black cross on a pale blue background", Kind::Cross, Colour::Black),
    ("a large blue diamond on a grey background", Kind::Diamond, Colour::Blue),
    ("a white cloud in the sky", Kind::Cloud, Colour::White),
];

/// What is computed in f32 twice is the same; 8 bits are told from it, and do not get worse unseen.
#[test]
fn measures_what_a_precision_changes() {
    let folder = tempfile::tempdir().unwrap();
    let errors = |dtype: &str| -> Vec<f64> {
        let said = succeed(&["eval", "precision", "--prompts", "4", "--dtype", dtype], folder.path());
        let numbers = said.lines().skip(1).map(|line| line.trim_end_matches(" dB").split_whitespace().last().unwrap());
        numbers.map(|number| number.parse().unwrap()).collect()
    };
    let exact = errors("f32");
    assert_eq!(exact[1..4], [0.0; 3]);
    assert!(exact[0] > 0.99999 && exact[4].is_infinite(), "{exact:?}");
    let rounded = errors("int8");
    assert!(rounded[0] > 0.999 && rounded[0] < 1.0, "{rounded:?}");
    assert!(rounded[1..4].iter().all(|error| *error > 0.0 && *error < 0.5), "{rounded:?}");
}

/// The program's own ControlNet draws what a sketch outlines, where it is, and along the edges of scenes.
#[test]
fn its_own_controlnet_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let said = succeed(&["eval", "control", "--scenes", "12", "--output", "drawn", "--quiet"], folder.path());
    let share = |name: &str| -> f64 {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().next().unwrap().parse().unwrap()
    };
    let (followed, free) = (share("along the edges"), share("without them"));
    assert!(followed > 0.6 && free < followed - 0.2, "{followed}, {free}");
    assert_eq!(entries(&path("drawn")).len(), 13, "a picture of each scene, and the prompts");
    assert_eq!(std::fs::read_to_string(path("drawn/prompts.txt")).unwrap().lines().count(), 12);
    assert_eq!(pixels(&path("drawn/0000.png")).len(), 3 * 4 * 128 * 128);

    // A dark outline on white, in the right upper quarter of a larger picture.
    let on_ring = |x: u32, y: u32| {
        let distance = ((x as f32 - 360.0).powi(2) + (y as f32 - 150.0).powi(2)).sqrt();
        (96.0..104.0).contains(&distance)
    };
    let sketch = image::GrayImage::from_fn(512, 512, |x, y| image::Luma([if on_ring(x, y) { 20 } else { 255 }]));
    sketch.save(path("sketch.png")).unwrap();
    let draw = ["generate", "a red circle", "--control-image", "sketch.png", "--seed", "4", "--output", "circle.png"];
    succeed(&draw, folder.path());
    let circle = image::open(path("circle.png")).unwrap().into_rgb8();
    let red = |pixel: &image::Rgb<u8>| pixel[0] > 150 && pixel[1] < 110 && pixel[2] < 110;
    let near = |x: u32, y: u32| ((x as f32 - 90.0).powi(2) + (y as f32 - 37.5).powi(2)).sqrt() < 22.0;
    let (mut inside, mut outside) = ((0, 0), (0, 0));
    for (x, y, pixel) in circle.enumerate_pixels() {
        let count = if near(x, y) { &mut inside } else { &mut outside };
        *count = (count.0 + usize::from(red(pixel)), count.1 + 1);
    }
    assert!(inside.0 * 10 > inside.1 * 8 && outside.0 * 10 < outside.1, "{inside:?}, {outside:?}");
}

#[test]
fn measures_faithfulness_and_reconstruction() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    let eval = ["eval", "faithfulness", "--model", &model, "--prompts", "2", "--steps", "1", "--output", "pictures"];
    let printed = succeed(&eval, folder.path());
    assert!(printed.starts_with("one object, kind and colour") && printed.contains("(0 of 1)"), "{printed}");
    assert_eq!(entries(&folder.path().join("pictures")).len(), 3, "two pictures and their prompts");
    let printed = succeed(&["eval", "reconstruction", "--vae", &model, "--scenes", "2", "--size", "64"], folder.path());
    let psnr: f64 = printed.split(' ').next().unwrap().parse().unwrap();
    assert!((1.0..20.0).contains(&psnr) && printed.contains("dB"), "{printed}");
    let nothing = ["eval", "faithfulness", "--model", &model, "--prompts", "0"];
    assert!(fail(&nothing, folder.path()).contains("--prompts is 0"));
}

/// A disk that fills up while features or a checkpoint are written: what was there before stays.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_ends_training_with_the_last_checkpoint_kept() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.toml"), RECIPE.replace("steps = 3", "steps = 2")).unwrap();
    succeed(&["train", "recipe.toml", "--output", "run"], folder.path());
    std::fs::write(folder.path().join("recipe.toml"), RECIPE.replace("steps = 3", "steps = 4")).unwrap();
    let checkpoints = folder.path().join("run/checkpoints");
    let before = entries(&checkpoints);
    assert_eq!(before.len(), 1);
    let limited = |blocks: usize, arguments: &str| {
        let program = env!("CARGO_BIN_EXE_pixart");
        let command = format!("trap '' XFSZ; ulimit -f {blocks}; exec {program} {arguments}");
        let output = Command::new("bash").args(["-c", &command]).current_dir(folder.path()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
        stderr
    };
    let error = limited(4, "train recipe.toml --output run");
    assert!(error.contains("run/checkpoints/"), "{error}");
    assert_eq!(entries(&checkpoints), before, "only the last good checkpoint is there");
    let model = model("alpha-256");
    let error = limited(1, &format!("features --scenes 3 --size 64 --vae '{model}' --output features"));
    assert!(error.contains("features/"), "{error}");
    assert!(entries(&folder.path().join("features")).iter().all(|path| !path.to_string_lossy().contains("shard")));
}
