//! The tokenizer of a text encoder that is trained from nothing: a token for each word of the captions.

use std::collections::BTreeSet;

use tokenizers::Tokenizer;
use tokenizers::models::unigram::Unigram;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Error};

/// T5's special tokens, in the order of their ids.
const SPECIAL: [&str; 3] = ["<pad>", "</s>", "<unk>"];

/// A T5 tokenizer whose pieces are the words and punctuation marks of `captions`; all else is unknown to it.
pub(crate) fn word_tokenizer<'a>(captions: impl IntoIterator<Item = &'a str>) -> Result<Tokenizer, Error> {
    let mut pieces = BTreeSet::new();
    for word in captions.into_iter().flat_map(str::split_whitespace) {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_punctuation());
        pieces.insert(format!("▁{letters}"));
        pieces.extend(word[letters.len()..].chars().map(String::from));
    }
    let special = SPECIAL.into_iter().map(|token| (token.to_string(), 0.0));
    let vocabulary = special.chain(pieces.into_iter().map(|piece| (piece, -1.0))).collect();
    let unknown = SPECIAL.len() - 1;
    let mut tokenizer = Tokenizer::new(Unigram::from(vocabulary, Some(unknown), false)?);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        WhitespaceSplit.into(),
        Metaspace::new('▁', PrependScheme::Always, true).into(),
    ])));
    tokenizer.with_decoder(Some(Metaspace::new('▁', PrependScheme::Always, true)));
    let end = TemplateProcessing::builder()
        .try_single("$A </s>")
        .and_then(|builder| builder.special_tokens(vec![("</s>", 1)]).build().map_err(|error| error.to_string()))?;
    tokenizer.with_post_processor(Some(end));
    tokenizer.add_special_tokens(SPECIAL.map(|token| AddedToken::from(token, true).normalized(false)))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_tokens_and_others_are_unknown() {
        let tokenizer = word_tokenizer(["a red star, at night", "two stars"]).expect("it can be made");
        assert_eq!(tokenizer.get_vocab_size(true), 3 + 8);
        let pieces = |text: &str| -> Vec<String> {
            let encoding = tokenizer.encode(text, true).expect("it can be encoded");
            encoding.get_tokens().to_vec()
        };
        assert_eq!(pieces("two red stars, a star"), ["▁two", "▁red", "▁stars", ",", "▁a", "▁star", "</s>"]);
        let unknown = tokenizer.encode("a zebra", false).expect("it can be encoded");
        assert_eq!(unknown.get_ids()[1..], [2]);
        assert_eq!(pieces(""), ["</s>"]);
    }
}
