//! Features: from every kind of dataset, with what is broken in it, and in several goes.

use std::path::Path;

use candle_core::{DType, Device, IndexOp};
use image::{Rgb, RgbImage};
use pixart::Pipeline;
use pixart_train::{Dataset, Extracted, Extractor, Features, ITEMS_PER_SHARD, ScenesDataset, open_dataset};

use crate::{bytes, checkpoint};

fn extractor(with_text: bool, size: usize) -> pixart_train::Result<Extractor> {
    let text = with_text.then(|| Pipeline::builder(checkpoint()).keep_loaded(true).open()).transpose()?;
    Extractor::new(&checkpoint(), text, size, &Device::Cpu)
}

fn picture(path: &Path, width: u32, height: u32) {
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, 90]));
    picture.save(path).expect("a picture can be written");
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file can be written");
}

fn extract(dataset: &dyn Dataset, folder: &Path) -> pixart_train::Result<(Extracted, Features)> {
    let extracted = extractor(true, 256)?.extract(dataset, folder, |_| true)?;
    let features = Features::open(folder)?;
    Ok((extracted, features))
}

#[test]
fn every_kind_of_folder_and_shard_is_read() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let make = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.join("InternImgs")).expect("a folder");
        path
    };
    let beside = make("beside");
    for (name, width, height) in [("a.png", 80, 80), ("b.jpg", 120, 60)] {
        picture(&beside.join(name), width, height);
    }
    write(&beside.join("a.txt"), " a square picture\n");
    write(&beside.join("b.txt"), "a wide picture");

    let metadata = make("metadata");
    picture(&metadata.join("a.png"), 80, 80);
    picture(&metadata.join("InternImgs/b.webp"), 120, 60);
    let lines = [
        r#"{"file_name": "a.png", "text": "a square picture"}"#,
        r#"{"file_name": "InternImgs/b.webp", "text": "a wide picture"}"#,
    ];
    write(&metadata.join("metadata.jsonl"), &lines.join("\n"));

    let info = make("info");
    picture(&info.join("a.png"), 80, 80);
    picture(&info.join("InternImgs/b.png"), 120, 60);
    let list = r#"[{"path": "a.png", "prompt": "a square picture", "ratio": 1.0}, {"path": "b.png", "prompt": "a wide picture"}]"#;
    write(&info.join("data_info.json"), list);

    let shards = make("shards");
    let mut shard = tar::Builder::new(std::fs::File::create(shards.join("0.tar")).expect("a shard"));
    shard.append_path_with_name(beside.join("a.png"), "x.y/0001.png").expect("a file");
    shard.append_path_with_name(beside.join("a.txt"), "x.y/0001.txt").expect("a file");
    write(&info.join("b.json"), r#"{"caption": "a wide picture"}"#);
    shard.append_path_with_name(beside.join("b.jpg"), "x.y/0002.jpg").expect("a file");
    shard.append_path_with_name(info.join("b.json"), "x.y/0002.json").expect("a file");
    shard.into_inner().expect("a shard can be ended");

    for source in [&beside, &metadata, &info, &shards] {
        let dataset = open_dataset(std::slice::from_ref(source))?;
        let output = source.with_extension("features");
        let (extracted, features) = extract(dataset.as_ref(), &output)?;
        assert_eq!((extracted.items, extracted.skipped.len(), features.len()), (2, 0, 2), "{}", source.display());
        let captions: Vec<_> = features.captions().map(|captions| captions.join("")).collect();
        assert_eq!(captions, ["a square picture", "a wide picture"]);
        // The wide one has the size of PixArt's bin for its shape.
        assert_eq!(features.sizes().collect::<Vec<_>>(), [(256, 256), (176, 352)]);
        let batch = features.batch(&[1])?;
        assert_eq!(batch.moments.dims(), [1, 8, 22, 44]);
    }
    Ok(())
}

#[test]
fn what_cannot_be_read_is_skipped_and_named() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("pictures");
    std::fs::create_dir(&source).expect("a folder");
    picture(&source.join("good.png"), 64, 64);
    write(&source.join("good.txt"), "a picture");
    write(&source.join("broken.png"), "no picture");
    write(&source.join("broken.txt"), "a picture");
    picture(&source.join("silent.png"), 64, 64);
    picture(&source.join("empty.png"), 64, 64);
    write(&source.join("empty.txt"), " \n");
    let dataset = open_dataset(std::slice::from_ref(&source))?;
    let (extracted, features) = extract(dataset.as_ref(), &folder.path().join("features"))?;
    assert_eq!((extracted.items, features.len()), (1, 1));
    let skipped: Vec<_> = extracted.skipped.iter().map(|item| format!("{} {}", item.name, item.reason)).collect();
    for (text, name, reason) in [
        (&skipped[0], "broken.png", "no picture"),
        (&skipped[1], "empty.png", "empty"),
        (&skipped[2], "silent.png", "no caption"),
    ] {
        assert!(text.contains(name) && text.contains(reason), "{text}");
    }

    // A caption that comes later is found, and the rest stays as it is.
    write(&source.join("silent.txt"), "a late one");
    let (extracted, features) = extract(dataset.as_ref(), &folder.path().join("features"))?;
    assert_eq!((extracted.items, extracted.skipped.len()), (2, 2));
    assert_eq!(features.captions().map(|captions| captions.join("")).collect::<Vec<_>>(), ["a picture", "a late one"]);

    // Nothing that can be used is an error, which says why.
    let unusable = folder.path().join("unusable");
    std::fs::create_dir(&unusable).expect("a folder");
    write(&unusable.join("metadata.jsonl"), "{\"file_name\": \"gone.png\", \"text\": \"a picture\"}");
    let mut shard = tar::Builder::new(std::fs::File::create(folder.path().join("mute.tar")).expect("a shard"));
    shard.append_path_with_name(source.join("good.png"), "0001.png").expect("a file");
    shard.into_inner().expect("a shard can be ended");
    for (path, item, reason) in
        [(unusable, "gone.png", "No such file"), (folder.path().join("mute.tar"), "0001", "has no caption")]
    {
        let dataset = open_dataset(&[path])?;
        let error = extractor(false, 64)?.extract(dataset.as_ref(), &folder.path().join("of nothing"), |_| true);
        let error = error.expect_err("nothing can be used").to_string();
        assert!(error.contains("none of the 1 pictures") && error.contains(item) && error.contains(reason), "{error}");
        std::fs::remove_dir_all(folder.path().join("of nothing")).expect("a folder");
    }

    let refused = |path: &Path, message: &str| {
        let error = open_dataset(&[path.to_path_buf()]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(message), "{}: {error}", path.display());
    };
    let nothing = folder.path().join("nothing");
    refused(&nothing, "is not there");
    std::fs::create_dir(&nothing).expect("a folder");
    refused(&nothing, "has no pictures");
    picture(&nothing.join("a.png"), 8, 8);
    refused(&nothing, "no captions");
    write(&nothing.join("metadata.jsonl"), "{\"file_name\": \"a.png\"}");
    refused(&nothing, "entry 1 has no caption");
    write(&nothing.join("metadata.jsonl"), "{");
    refused(&nothing, "line 1");
    write(&nothing.join("metadata.jsonl"), "\n");
    refused(&nothing, "lists no pictures");
    write(&folder.path().join("x.tar"), "no tar");
    refused(&folder.path().join("x.tar"), ".tar");
    Ok(())
}

/// Stopped in its second shard, an extraction keeps the first, and gives the same in the end.
#[test]
fn an_extraction_goes_on_where_it_was_stopped() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (straight, stopped) = (folder.path().join("straight"), folder.path().join("stopped"));
    let scenes = ScenesDataset { count: ITEMS_PER_SHARD + 20, size: 16 };
    extractor(false, 16)?.extract(&scenes, &straight, |_| true)?;
    let first = extractor(false, 16)?.extract(&scenes, &stopped, |now| now.done <= ITEMS_PER_SHARD)?;
    assert!(first.stopped && first.items == ITEMS_PER_SHARD);
    let error = Features::open(&stopped).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("is not finished"), "{error}");
    let mut computed = 0;
    let second = extractor(false, 16)?.extract(&scenes, &stopped, |_| {
        computed += 1;
        true
    })?;
    assert!(!second.stopped && second.items == scenes.count && computed < 6, "{computed}");
    assert_eq!(bytes(&stopped), bytes(&straight));

    let other = ScenesDataset { count: 5, size: 16 };
    let error = extractor(false, 16)?.extract(&other, &stopped, |_| true).expect_err("another dataset").to_string();
    assert!(error.contains("choose another output folder"), "{error}");
    let error = Features::open(folder.path()).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("no features.json"), "{error}");
    Ok(())
}

/// What is read back is what the networks give, but for the rounding to f16.
#[test]
fn features_are_what_the_networks_give() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dataset = ScenesDataset { count: 3, size: 64 };
    extractor(true, 64)?.extract(&dataset, folder.path(), |_| true)?;
    let features = Features::open(folder.path())?;
    let batch = features.batch(&[2])?;
    let item = dataset.read(2).expect("a scene can be read");
    assert_eq!(batch.captions, std::slice::from_ref(&item.captions));

    let embeds = Pipeline::open(checkpoint())?.encode(&item.captions[..1], None, true)?;
    let tokens = embeds.prompt_attention_mask.sum_all()?.to_scalar::<f32>()? as usize;
    let found = &batch.prompt_embeds.expect("captions were encoded")[0];
    let expected = embeds.prompt_embeds.i((0, ..tokens, ..))?;
    assert_eq!(found.dims(), expected.dims());
    let off = |a: &candle_core::Tensor, b: &candle_core::Tensor| -> candle_core::Result<f32> {
        (a - b)?.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F32)?.to_scalar()
    };
    assert!(off(found, &expected)? < 5e-3);

    // The latents decode to what the autoencoder makes of the picture.
    let mean = batch.moments.narrow(1, 0, 4)?;
    let decoded = Pipeline::open(checkpoint())?.decode(&(mean * features.description().scaling_factor)?)?;
    assert_eq!(decoded[0].dimensions(), (64, 64));
    Ok(())
}
