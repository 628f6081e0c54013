//! Prompts to measure a model with.

use std::collections::HashSet;

use crate::caption::Manner;
use crate::claims::Prompt;
use crate::dice::{Dice, Purpose};
use crate::scene::{Arrangement, Scene};
use crate::split::Split;

/// Of every ten prompts: four with one object, four with two in a relation, a count, and three or four objects.
const MIX: [Arrangement; 10] = [
    Arrangement::One,
    Arrangement::Two,
    Arrangement::Count,
    Arrangement::One,
    Arrangement::Two,
    Arrangement::Several,
    Arrangement::One,
    Arrangement::Two,
    Arrangement::One,
    Arrangement::Two,
];

/// The first `n` of a fixed list of different prompts. Each names a combination that is held out from training: colours
/// and relations are always mentioned.
pub fn test_prompts(n: usize) -> Vec<Prompt> {
    let mut dice = Dice::new(0, Purpose::TestPrompts);
    let mut texts = HashSet::new();
    MIX.iter()
        .cycle()
        .take(n)
        .map(|arrangement| {
            loop {
                let scene = Scene::arranged(&mut dice, *arrangement, Split::Test);
                let prompt = scene.worded(&mut dice, Manner::Definite);
                if texts.insert(prompt.text.clone()) {
                    return prompt;
                }
            }
        })
        .collect()
}
