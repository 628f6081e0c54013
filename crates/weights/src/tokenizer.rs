//! T5's tokenizer, from `tokenizer.json` or from the SentencePiece model `spiece.model` that published checkpoints have.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use prost::Message;
use serde_json::Value;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, Tokenizer};

use crate::{Error, Result, read_json};

/// Tokens `<extra_id_99>` … `<extra_id_0>` that follow T5's vocabulary where no file says otherwise.
const EXTRA_IDS: usize = 100;

/// The parts of SentencePiece's `sentencepiece_model.proto` that decide how text is split.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
}

const UNIGRAM: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Reads the tokenizer of a `tokenizer/` folder: `tokenizer.json` where there is one, else `spiece.model`.
pub fn read_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let (json, sentencepiece) = (folder.join("tokenizer.json"), folder.join("spiece.model"));
    if json.exists() {
        read_tokenizer_json(&json)
    } else if sentencepiece.exists() {
        read_sentencepiece(&sentencepiece)
    } else {
        Err(Error::missing(
            folder,
            "there is neither a tokenizer.json nor a spiece.model; download the tokenizer again",
        ))
    }
}

fn read_tokenizer_json(path: &Path) -> Result<Tokenizer> {
    check_charsmaps(path, &read_json(path)?)?;
    let broken = |error: tokenizers::Error| Error::corrupt(path, format!("is no tokenizer: {error}"));
    let mut tokenizer = Tokenizer::from_file(path).map_err(broken)?;
    // A saved tokenizer may remember how its last batch was padded and cut; here both are the pipeline's business.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(broken)?;
    Ok(tokenizer)
}

/// Checks every normaliser by a table in a `tokenizer.json`: the tokenizers library panics at one that has no table, and
/// while it looks up a character in one whose table is broken.
fn check_charsmaps(path: &Path, json: &Value) -> Result<()> {
    match json {
        Value::Object(fields) => {
            if fields.get("type").is_some_and(|kind| kind == "Precompiled") {
                let charsmap = fields.get("precompiled_charsmap").and_then(Value::as_str);
                let charsmap = charsmap.ok_or_else(|| {
                    let reason = "its Precompiled normalizer has no precompiled_charsmap; download the tokenizer again";
                    Error::corrupt(path, reason)
                })?;
                let charsmap = base64::engine::general_purpose::STANDARD
                    .decode(charsmap)
                    .map_err(|error| Error::corrupt(path, format!("precompiled_charsmap: {error}")))?;
                check_charsmap(path, &charsmap)?;
            }
            fields.values().try_for_each(|value| check_charsmaps(path, value))
        }
        Value::Array(values) => values.iter().try_for_each(|value| check_charsmaps(path, value)),
        _ => Ok(()),
    }
}

/// Builds T5's tokenizer from a SentencePiece model: normalise by its table, split at whitespace, mark the beginning of
/// each word with `▁`, find the likeliest pieces. Tokens beyond the model's pieces come from the files beside it.
pub fn read_sentencepiece(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let model = ModelProto::decode(bytes.as_slice())
        .map_err(|error| Error::corrupt(path, format!("is no SentencePiece model ({error}); download it again")))?;
    let trainer = model.trainer_spec.unwrap_or_default();
    if trainer.model_type.unwrap_or(UNIGRAM) != UNIGRAM {
        return Err(Error::unsupported(path, "is not a unigram model; T5 has one"));
    }
    if let Some(piece) = model.pieces.iter().find(|piece| !piece.score.is_finite()) {
        return Err(Error::corrupt(path, format!("piece {:?} has the score {}", piece.piece, piece.score)));
    }
    let broken = |error: tokenizers::Error| Error::corrupt(path, format!("its pieces make no vocabulary: {error}"));
    let vocabulary = model.pieces.iter().map(|piece| (piece.piece.clone(), f64::from(piece.score))).collect();
    let unknown = usize::try_from(trainer.unk_id.unwrap_or(0)).unwrap_or(usize::MAX);
    let mut tokenizer = Tokenizer::new(Unigram::from(vocabulary, Some(unknown), false).map_err(broken)?);

    let charsmap = model.normalizer_spec.and_then(|normalizer| normalizer.precompiled_charsmap).unwrap_or_default();
    if !charsmap.is_empty() {
        check_charsmap(path, &charsmap)?;
        let normalizer = Precompiled::from(&charsmap).map_err(|error| Error::corrupt(path, error.to_string()))?;
        tokenizer.with_normalizer(Some(normalizer)).map_err(broken)?;
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        WhitespaceSplit.into(),
        Metaspace::new('▁', PrependScheme::Always, true).into(),
    ])));
    tokenizer.with_decoder(Some(Metaspace::new('▁', PrependScheme::Always, true)));

    let marked = |kind| model.pieces.iter().filter(move |piece| piece.kind == Some(kind));
    let mut special: Vec<AddedToken> = marked(CONTROL).map(|piece| token(&piece.piece, true)).collect();
    special.extend(model.pieces.get(unknown).map(|piece| token(&piece.piece, true)));
    let user_defined: Vec<AddedToken> = marked(USER_DEFINED).map(|piece| token(&piece.piece, false)).collect();
    tokenizer.add_special_tokens(special).map_err(broken)?;
    tokenizer.add_tokens(user_defined).map_err(broken)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for (id, added) in added_tokens(folder, model.pieces.len())? {
        tokenizer.add_special_tokens([added.clone()]).map_err(broken)?;
        if tokenizer.token_to_id(&added.content) != Some(id) {
            return Err(Error::unsupported(
                folder,
                format!("gives token {:?} the id {id}, out of order", added.content),
            ));
        }
    }
    Ok(tokenizer)
}

fn token(content: &str, special: bool) -> AddedToken {
    AddedToken::from(content, special).normalized(false)
}

/// The tokens that follow the `pieces` of the model, by id: from `tokenizer_config.json`, else `added_tokens.json`, else
/// T5's hundred extra ids.
fn added_tokens(folder: &Path, pieces: usize) -> Result<BTreeMap<u32, AddedToken>> {
    let (config, added) = (folder.join("tokenizer_config.json"), folder.join("added_tokens.json"));
    let mut tokens = BTreeMap::new();
    let listed = if config.exists() { read_json(&config)?.get("added_tokens_decoder").cloned() } else { None };
    if let Some(Value::Object(listed)) = listed {
        for (id, value) in listed {
            let entry = id.parse::<u32>().ok().zip(serde_json::from_value::<AddedToken>(value).ok());
            let (id, entry) =
                entry.ok_or_else(|| Error::corrupt(&config, format!("added_tokens_decoder[{id:?}] is no token")))?;
            tokens.insert(id, entry);
        }
    } else if added.exists() {
        let json = read_json(&added)?;
        let listed = json.as_object().ok_or_else(|| Error::corrupt(&added, "is no JSON object"))?;
        for (content, id) in listed {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| Error::corrupt(&added, format!("{content:?} has no id")))?;
            tokens.insert(id, token(content, true));
        }
    } else {
        tokens.extend(
            (0..EXTRA_IDS).map(|i| ((pieces + i) as u32, token(&format!("<extra_id_{}>", EXTRA_IDS - 1 - i), true))),
        );
    }
    // Those that the model's own pieces already cover keep their ids there.
    tokens.retain(|id, _| *id as usize >= pieces);
    Ok(tokens)
}

/// Walks SentencePiece's precompiled normalisation table (a double-array trie in 32-bit units, then the replacement
/// strings) as a lookup walks it, and checks that every step and every replacement lies inside of it: the library that
/// uses the table trusts it.
fn check_charsmap(path: &Path, charsmap: &[u8]) -> Result<()> {
    const BROKEN: &str = "its normalisation table (precompiled_charsmap) is corrupt; download the tokenizer again";
    let broken = || Error::corrupt(path, BROKEN);
    let (size, rest) = charsmap.split_first_chunk::<4>().ok_or_else(broken)?;
    let (trie, replacements) = rest.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or_else(broken)?;
    let replacements = std::str::from_utf8(replacements).map_err(|_| broken())?;
    let units: Vec<usize> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let (has_leaf, label) = (|unit: usize| unit >> 8 & 1 == 1, |unit: usize| unit & (1 << 31 | 0xFF));

    let root = offset(*units.first().ok_or_else(broken)?);
    let mut seen = vec![false; units.len()];
    let mut bases = vec![root];
    while let Some(base) = bases.pop() {
        // A lookup may read any of the 256 units that share the base's upper bits.
        if base | 0xFF >= units.len() {
            return Err(broken());
        }
        for byte in 1..=0xFF {
            let child = base ^ byte;
            let unit = units[child];
            if label(unit) != byte || std::mem::replace(&mut seen[child], true) {
                continue;
            }
            let next = child ^ offset(unit);
            if has_leaf(unit) {
                let start = units.get(next).map(|leaf| leaf & ((1 << 31) - 1)).ok_or_else(broken)?;
                if start >= replacements.len() || !replacements.is_char_boundary(start) {
                    return Err(broken());
                }
            }
            bases.push(next);
        }
    }
    Ok(())
}
