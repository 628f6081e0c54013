//! A limit of memory: what is drawn within it takes no more, and what would take more is refused.

use std::path::Path;

use candle_core::{Device, Tensor};
use pixart_weights::write_tensors;

use super::{SMALL, fail, model, pixels, succeed};

/// The peak in bytes that a command's line of result names.
fn peak(result: &str) -> f64 {
    let (_, after) = result.rsplit_once("peak ").unwrap();
    1e9 * after.split_whitespace().next().unwrap().parse::<f64>().unwrap()
}

/// In bands the picture is the same to the bit, where there are not so many pixels that sums over them differ by their order.
#[test]
fn decodes_the_same_picture_in_bands() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let latents = Tensor::randn(0f32, 0.5, (1, 8, 192, 192), &Device::Cpu).unwrap();
    write_tensors(&folder.join("latents.safetensors"), &[("latents", &latents)]).unwrap();
    succeed(&["decode", "latents.safetensors", "--dtype", "f32", "--output", "whole.png"], folder);
    succeed(&["decode", "latents.safetensors", "--dtype", "f32", "--vae-tiling", "--output", "bands.png"], folder);
    assert!(pixels(&folder.join("whole.png")) == pixels(&folder.join("bands.png")));
}

#[test]
fn decodes_the_same_picture_within_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let latents = Tensor::randn(0f32, 0.5, (1, 8, 320, 320), &Device::Cpu).unwrap();
    write_tensors(&folder.join("latents.safetensors"), &[("latents", &latents)]).unwrap();
    let decode = |output: &str, limit: &[&str]| {
        peak(&succeed(
            &[&["decode", "latents.safetensors", "--dtype", "f32", "--output", output], limit].concat(),
            folder,
        ))
    };
    let whole = decode("whole.png", &[]);
    let limited = decode("limited.png", &["--memory-limit", "1.3GB"]);
    assert!(whole > 1.3e9, "{whole} bytes: this says nothing about the limit");
    assert!(limited <= 1.3e9, "{limited} bytes");
    // Sums over the whole image are added up in another order, so that a few numbers round the other way.
    let (whole, limited) = (pixels(&folder.join("whole.png")), pixels(&folder.join("limited.png")));
    let differences = whole.iter().zip(&limited).map(|(a, b)| a.abs_diff(*b)).filter(|difference| *difference > 0);
    let (count, largest) =
        differences.fold((0, 0), |(count, largest), difference| (count + 1, largest.max(difference)));
    assert!(largest <= 1 && count * 10_000 < whole.len(), "{count} differences up to {largest}");

    let told = fail(
        &["decode", "latents.safetensors", "--dtype", "f32", "--output", "refused.png", "--memory-limit", "300MB"],
        folder,
    );
    assert!(told.contains("2560x2560") && told.contains("the limit is 300 MB; "), "{told}");
    let offered = told
        .split_whitespace()
        .find_map(|word| word.split_once('x')?.0.parse::<usize>().ok().filter(|width| *width != 2560));
    assert!(offered.is_some_and(|width| (64..2560).contains(&width)), "{told}");
}

/// What is offered in place of what does not fit does fit, and takes no more than the limit.
#[test]
fn what_does_not_fit_is_refused_before_any_work_with_what_would() {
    let folder = tempfile::tempdir().unwrap();
    let generate = |width: &str, height: &str| {
        ["generate", "a red circle", "--dtype", "f32", "--width", width, "--height", height]
            .into_iter()
            .chain(["--steps", "1", "--no-resolution-binning", "--memory-limit", "300MB", "--output", "picture.png"])
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let run = |arguments: Vec<String>, run: fn(&[&str], &Path) -> String| {
        run(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), folder.path())
    };
    let told = run(generate("4096", "2048"), fail);
    assert!(told.contains("a picture of 4096x2048 in f32 takes about"), "{told}");
    let offered = told.split_whitespace().rev().find_map(|word| word.split_once('x')).unwrap();
    assert!(offered.0.parse::<usize>().unwrap() > offered.1.parse::<usize>().unwrap(), "of the same shape: {told}");
    let drawn = run(generate(offered.0, offered.1), succeed);
    assert!(peak(&drawn) <= 0.3e9, "{drawn}");
}

/// Where 8 bits are enough, that is what is offered, and it is enough.
#[test]
fn eight_bits_are_offered_where_they_are_enough() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let encode =
        |dtype, limit| ["encode", "a red circle", "--dtype", dtype, "--memory-limit", limit, "--output", "embeds"];
    let told = fail(&encode("f32", "102MB"), folder);
    assert!(told.contains("encoding a prompt takes about") && told.contains("it fits with --dtype int8"), "{told}");
    assert!(peak(&succeed(&encode("int8", "102MB"), folder)) <= 0.102e9);

    let generate = |dtype: &'static str, limit: &'static str, size: &'static str| {
        let what = ["generate", "a red circle", "--steps", "1", "--output", "picture.png", "--no-resolution-binning"];
        what.into_iter()
            .chain(["--dtype", dtype, "--memory-limit", limit, "--width", size, "--height", size])
            .collect::<Vec<_>>()
    };
    // On a processor that is fast with bf16 what is not in 8 bits is in it too, else bf16 alone is enough.
    let told = fail(&generate("f32", "115MB", "128"), folder);
    let (_, offered) = told.trim_end().split_once("the limit is 115 MB; it fits with --dtype ").expect(&told);
    let drawn = succeed(&generate(if offered == "int8" { "int8" } else { "bf16" }, "115MB", "128"), folder);
    assert!(peak(&drawn) <= 0.115e9, "{offered}: {drawn}");
    let told = fail(&generate("f32", "90MB", "128"), folder);
    assert!(told.trim_end().ends_with("the limit is 90 MB; no size fits"), "{told}");
    let told = fail(&encode("f32", "90MB"), folder);
    assert!(told.trim_end().ends_with("the limit is 90 MB; no prompt fits"), "{told}");
}

/// Of a model in 8 bits bf16 is offered for the rest, and is enough.
#[test]
fn bf16_is_offered_beside_8_bits_where_it_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(&["quantize", "--scheme", "int8-weights", "--output", "rounded"], folder);
    let generate = |dtype: &'static str| {
        let what =
            ["generate", "a red circle", "--model", "rounded", "--steps", "1", "--width", "512", "--height", "512"];
        let how = ["--no-resolution-binning", "--memory-limit", "150MB", "--output", "picture.png", "--dtype", dtype];
        [&what[..], &how].concat()
    };
    let told = fail(&generate("f32"), folder);
    assert!(told.trim_end().ends_with("the limit is 150 MB; it fits with --dtype bf16"), "{told}");
    assert!(peak(&succeed(&generate("bf16"), folder)) <= 0.15e9);
}

/// Where encoding is what does not fit, embeddings are offered.
#[test]
fn embeddings_are_offered_where_they_are_enough() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let prompts: String = (0..8).map(|i| format!("{i}{}\n", " a red circle".repeat(40))).collect();
    std::fs::write(folder.join("prompts.txt"), prompts).unwrap();
    let model = model("alpha-256");
    let limited = ["--dtype", "f32", "--memory-limit", "103MB", "--output", "pictures"];
    let arguments = [&["generate", "--prompts-file", "prompts.txt", "--model", &model][..], &SMALL, &limited].concat();
    let told = fail(&arguments, folder);
    assert!(told.contains("; it fits with embeddings that are there already (--prompt-embeds)"), "{told}");
}

#[test]
fn info_estimates_memory_by_dtype_and_size() {
    let folder = tempfile::tempdir().unwrap();
    let said = succeed(&["info", "--memory"], folder.path());
    let numbers = |row: &str| -> Vec<f64> { row.split('|').filter_map(|cell| cell.trim().parse().ok()).collect() };
    let rows: Vec<Vec<f64>> = said.lines().map(numbers).filter(|numbers| numbers.len() == 4).collect();
    assert_eq!(rows.len(), 16, "{said}");
    for row in &rows {
        assert!(row.is_sorted(), "larger pictures take no less: {said}");
    }
    for stages in rows.chunks(4) {
        assert!(stages[3].iter().zip(&stages[2]).all(|(least, whole)| least <= whole), "{said}");
    }
}

/// A model that is in 8 bits already stays in them, whatever the rest is in.
#[test]
fn info_estimates_memory_of_a_model_in_8_bits() {
    let folder = tempfile::tempdir().unwrap();
    for scheme in ["int8", "int8-weights"] {
        succeed(&["quantize", "--scheme", scheme, "--output", scheme], folder.path());
        let said = succeed(&["info", scheme, "--memory"], folder.path());
        let rows = |dtype: &str| said.lines().filter(|line| line.starts_with(&format!("| {scheme}, {dtype} "))).count();
        assert_eq!((rows("f32"), rows("bf16")), (4, 4), "{said}");
    }
}
