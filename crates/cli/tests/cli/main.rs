//! The program as a user meets it: what it draws, prints and leaves behind, and one clear line for bad input.

mod control;
#[cfg(target_os = "linux")]
mod interrupted;
mod memory;
mod own_model;
mod training;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

/// A LoRA and parts from elsewhere are in what a picture remembers; those that do not belong are found before anything is written.
#[test]
fn parts_from_elsewhere_are_remembered_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let (alpha, lora) = (model("alpha-256"), fixture("training/lora"));
    let draw = ["a red fox", "--lora", &lora, "--lora-scale", "0.5", "--dtype", "f32", "--output", "fox.png"];
    succeed(&generate(&alpha, &draw), folder.path());
    let json: serde_json::Value = serde_json::from_str(&texts(&folder.path().join("fox.png"))["pixart"]).unwrap();
    assert_eq!(json["loras"], serde_json::json!([{ "path": lora, "strength": 0.5 }]));
    assert_eq!((&json["dtype"], json.get("parts")), (&"f32".into(), None));
    let transformer = format!("{alpha}/transformer");
    let refused = |arguments: &[&str], message: &str| {
        let told = fail(arguments, folder.path());
        assert!(told.contains(message), "{told}");
    };
    refused(&["convert", &alpha, "--vae", &transformer, "--output", "new"], "must be AutoencoderKL");
    refused(&["convert", &alpha, "--output", "none/new"], "none: there is no such folder");
    refused(&["quantize", "--model", "none", "--output", "new"], "none: there is no such folder");
    succeed(&["quantize", "--model", &alpha, "--parts", "vae,transformer,vae", "--output", "int8"], folder.path());
    refused(&generate("int8", &["x", "--dtype", "int8-weights", "--output", "x.png"]), "in int8 already");
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
    assert!(about["dtype"].as_str().is_some_and(|dtype| dtype.starts_with("int8, ")), "{about}");
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
        // Before any prompt is read.
        (&["--model", "rounded", "--output", "new", "--calibrate", "nowhere.txt"], &["in int8 already"]),
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

#[test]
fn help_has_examples_and_shells_have_completions() {
    let folder = tempfile::tempdir().unwrap();
    assert!(succeed(&["generate", "--help"], folder.path()).contains("Examples:"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(succeed(&["completions", shell], folder.path()).contains("prompts-file"), "{shell}");
    }
}
