//! Text to token ids, against transformers' T5Tokenizer on the same files (`tools/reference/text.py`).

use std::path::{Path, PathBuf};

use pixart_weights::read_tokenizer;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// A `tokenizer.json` that remembers padding and truncation gives a prompt's own tokens all the same.
#[test]
fn saved_padding_and_truncation_are_not_applied() {
    let source = fixtures().join("checkpoints/sigma-512/tokenizer");
    let mut saved = tokenizers::Tokenizer::from_file(source.join("tokenizer.json")).unwrap();
    let plain = read_tokenizer(&source).unwrap();
    let padding = tokenizers::PaddingParams {
        strategy: tokenizers::PaddingStrategy::Fixed(300),
        ..tokenizers::PaddingParams::default()
    };
    saved.with_padding(Some(padding));
    saved.with_truncation(Some(tokenizers::TruncationParams { max_length: 3, ..Default::default() })).unwrap();
    let folder = tempfile::tempdir().unwrap();
    saved.save(folder.path().join("tokenizer.json"), false).unwrap();
    let ids = |tokenizer: &tokenizers::Tokenizer| {
        tokenizer.encode("a red fox in the snow", false).unwrap().get_ids().to_vec()
    };
    assert_eq!(ids(&read_tokenizer(folder.path()).unwrap()), ids(&plain));
}

/// The tokenizers library panics at a normaliser by a table that has no table; here it is an error like any other.
#[test]
fn a_normaliser_without_its_table_is_an_error() {
    let source = fixtures().join("checkpoints/sigma-512/tokenizer/tokenizer.json");
    let saved = std::fs::read_to_string(source).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for damaged in [
        saved.replace("\"precompiled_charsmap\"", "\"precompiled_charsmaq\""),
        saved.replace("\"precompiled_charsmap\"", "\"precompiled_charsmap\": 3, \"before\""),
        saved.replace("\"precompiled_charsmap\"", "\"precompiled_charsmap\": \"-\", \"before\""),
        saved.replace("\"precompiled_charsmap\"", "\"precompiled_charsmap\": \"AAAA\", \"before\""),
    ] {
        assert_ne!(damaged, saved);
        std::fs::write(folder.path().join("tokenizer.json"), damaged).unwrap();
        let error = read_tokenizer(folder.path()).expect_err("a tokenizer was read").to_string();
        assert!(error.contains("precompiled_charsmap"), "{error}");
    }
}

#[test]
fn ids_are_those_of_transformers() {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(fixtures().join("text/tokens.json")).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 30);
    for folder in ["alpha-256", "sigma-512"] {
        let tokenizer = read_tokenizer(&fixtures().join("checkpoints").join(folder).join("tokenizer")).unwrap();
        let eos = tokenizer.token_to_id("</s>").unwrap();
        let mut wrong = Vec::new();
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let mut ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
            ids.truncate(119);
            ids.push(eos);
            let expected: Vec<u32> =
                case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            if ids != expected {
                wrong.push(format!("{text:?}\n    found {ids:?}\n    wanted {expected:?}"));
            }
        }
        assert!(wrong.is_empty(), "{folder}: {} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    }
}
