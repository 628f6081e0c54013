//! The model that comes with the program, and what measures models.

use std::process::Command;

use pixart_scenes::{Colour, Kind, Picture};

use super::{entries, fail, model, pixels, succeed};

/// Of the ten below.
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

/// Its ControlNet in 8 bits, stored, draws along edges what it draws when it is rounded while it is read.
#[test]
fn follows_edges_in_8_bits() {
    let folder = tempfile::tempdir().unwrap();
    let square = |x: u32, y: u32| image::Luma([if x.abs_diff(64).max(y.abs_diff(64)) == 40 { 255u8 } else { 0 }]);
    image::GrayImage::from_fn(128, 128, square).save(folder.path().join("edges.png")).unwrap();
    let line = succeed(&["quantize", "--output", "rounded"], folder.path());
    assert!(line.contains("controlnet"), "{line}");
    let draw = |name: &str, model: &[&str]| {
        let what =
            ["generate", "a red square", "--control-image", "edges.png", "--control-type", "none", "--steps", "2"];
        succeed(&[&what[..], &["--seed", "1", "--output", name], model].concat(), folder.path());
        pixels(&folder.path().join(name))
    };
    let stored = draw("stored.png", &["--model", "rounded"]);
    assert!(stored == draw("read.png", &["--dtype", "int8"]));
    assert!(stored != draw("without.png", &["--model", "rounded", "--control-scale", "0"]), "it is seen");
}

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

#[test]
fn measures_faithfulness_and_reconstruction() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("alpha-256");
    let eval = ["eval", "faithfulness", "--model", &model, "--prompts", "2", "--steps", "1", "--output", "pictures"];
    let printed = succeed(&eval, folder.path());
    assert!(printed.starts_with("one object, kind and colour") && printed.contains("(0 of 1)"), "{printed}");
    assert_eq!(entries(&folder.path().join("pictures")).len(), 3, "two pictures and their prompts");
    let eval = ["eval", "reconstruction", "--vae", &model, "--scenes", "2", "--size", "64", "--output", "decoded"];
    let printed = succeed(&eval, folder.path());
    let decoded = entries(&folder.path().join("decoded"));
    assert!(decoded.len() == 2 && image::image_dimensions(&decoded[0]).unwrap().1 >= 128, "one above the other");
    let psnr: f64 = printed.split(' ').next().unwrap().parse().unwrap();
    assert!((1.0..20.0).contains(&psnr) && printed.contains("dB"), "{printed}");
    let psnr = |noise: &str| -> f64 {
        let printed = succeed(&["eval", "reconstruction", "--scenes", "2", "--latent-noise", noise], folder.path());
        printed.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(psnr("0") > 28.0 && psnr("2") < 20.0, "{} and {} dB", psnr("0"), psnr("2"));
    let unlike = ["eval", "reconstruction", "--scenes", "2", "--latent-noise=-1"];
    assert!(fail(&unlike, folder.path()).contains("noise of -1"));
    let nothing = ["eval", "faithfulness", "--model", &model, "--prompts", "0"];
    assert!(fail(&nothing, folder.path()).contains("--prompts is 0"));
}
