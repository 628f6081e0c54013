//! Training, from recipes and on a folder of pictures.

use super::{entries, fail, generate, model, pixart, pixels, succeed};

pub const RECIPE: &str = r#"
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
