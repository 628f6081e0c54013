//! Following edges, and drawing over pictures.

use super::{entries, fail, fixture, generate, model, pixels, succeed, texts};

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
    assert!(draw("never", &[&follow[..], &["--control-scale", "0"]].concat()) == plain);
    // The picture remembers all of it.
    let text = texts(&path("of-large.png"))["pixart"].clone();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["control_scale"], &json["control_end"]), (&1.0.into(), &1.0.into()), "{text}");
    assert_eq!(json["parts"]["controlnet"], "run/network", "{text}");

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

    std::fs::create_dir(path("lying")).unwrap();
    let config = std::fs::read_to_string(path("run/network/config.json")).unwrap();
    let lying = config.replace("\"num_layers\": 1", "\"num_layers\": 3");
    assert_ne!(lying, config);
    std::fs::write(path("lying/config.json"), lying).unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    std::fs::copy(path("run/network").join(weights), path("lying").join(weights)).unwrap();
    let itself = fail(&["control-image", "square.png", "--output", "./square.png"], folder.path());
    assert!(itself.contains("would be lost"), "{itself}");
    for (more, message) in [
        (&["--control-image", "square.png"][..], "name one with --control"),
        (&["--control-image", "missing.png", "--control", "run/network"], "missing.png"),
        (&["--control-image", "empty.png", "--control", "run/network"], "empty.png"),
        (&["--control-image", "square.png", "--control", "run/network", "--save-control", "bad.png"], "both a picture"),
        (&["--control-image", "text.png", "--control", "run/network"], "text.png"),
        (&["--control-image", "strip.png", "--control", "run/network"], "900x20"),
        (&["--control-image", "square.png", "--control", "converted"], "[16, 16]"),
        (&["--control-image", "square.png", "--control", "run/network", "--control-type", "hed"], "HED"),
        (&["--control-image", "square.png", "--control", "run/network", "--control-scale", "-1"], "control scale"),
        (&["--control-image", "square.png", "--control", "run/network", "--control-start", "2"], "between 0 and 1"),
        (&["--control-image", "square.png", "--control", "missing"], "missing"),
        (&["--control-image", "square.png", "--control", "run/network", "--control-end", "0.3"], "control could apply"),
        (&["--control-image", "square.png", "--control", "run/network", "--save-control", "map.jpg"], "as .png"),
        (
            &["--control-image", "square.png", "--control", "run/network", "--save-control", "square.png"],
            "would be lost",
        ),
        (
            &[
                "--control-image",
                "square.png",
                "--control",
                "run/network",
                "--save-control",
                "bad-0002.png",
                "--num-images",
                "2",
            ],
            "both a picture",
        ),
        (&["--control-image", "square.png", "--control", "run/network", "--hed", "x.pth"], "--control-type hed"),
        (&["--control-type", "canny"], "--control-image names"),
        (&["--control-image", "square.png", "--control", "lying"], "config.json has 3 copied blocks, the weights 1"),
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
