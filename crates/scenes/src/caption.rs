//! From scenes to prompts.

use crate::attributes::Fill;
use crate::claims::{ClaimedObject, ClaimedRelation, Claims, Prompt};
use crate::dice::{Dice, Purpose};
use crate::phrases;
use crate::scene::{Object, Scene, is_count};

/// No caption has more words.
pub const MAX_WORDS: usize = 24;

/// What a caption mentions beyond the kinds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Nearly always the colours, mostly the relation, and the rest sometimes.
    Free,
    /// Always the colours and the relation, and the rest sometimes.
    Definite,
    /// The colours and the relation only.
    Short,
}

impl Scene {
    /// One of many wordings of what is in the scene; another seed gives another wording, which may mention other things.
    pub fn caption(&self, seed: u64) -> String {
        self.prompt(seed).text
    }

    /// [`Scene::caption`] with what it claims. The claims' objects are in the order of [`Scene::objects`].
    pub fn prompt(&self, seed: u64) -> Prompt {
        self.worded(&mut Dice::new(seed, Purpose::Caption), Manner::Free)
    }

    /// Everything that can be said of the scene, with nothing left open.
    pub fn claims(&self) -> Claims {
        let objects = self.objects().iter().map(|object| ClaimedObject {
            kind: object.kind,
            colour: Some(object.colour),
            size: Some(object.size()),
            fill: Some(object.fill),
        });
        let relation = self.relation().map(|relation| ClaimedRelation { subject: 0, relation, reference: 1 });
        Claims {
            objects: objects.collect(),
            relations: relation.into_iter().collect(),
            background: Some(self.background()),
        }
    }

    pub(crate) fn worded(&self, dice: &mut Dice, manner: Manner) -> Prompt {
        // The longest of wordings are too long; the shortest has 20 words at most.
        for _ in 0..4 {
            let prompt = self.attempt(dice, manner);
            if prompt.text.split_whitespace().count() <= MAX_WORDS {
                return prompt;
            }
        }
        self.attempt(dice, Manner::Short)
    }

    fn attempt(&self, dice: &mut Dice, manner: Manner) -> Prompt {
        let claims = self.choose(dice, manner);
        let relation = claims.relations.first().map(|claim| claim.relation);
        let counted = is_count(self.objects());

        let mut text = match claims.objects.as_slice() {
            [only] => match dice.below(8) {
                0 => phrases::bare(dice, only),
                _ => phrases::one(dice, only),
            },
            [first, ..] if counted => phrases::several(dice, first, claims.objects.len()),
            objects => {
                let mut words: Vec<String> = objects.iter().map(|object| phrases::one(dice, object)).collect();
                match (relation, words.as_mut_slice()) {
                    (Some(relation), [first, second]) => phrases::related(dice, first, relation, second),
                    (_, words) => {
                        dice.shuffle(words);
                        phrases::listed(words)
                    }
                }
            }
        };
        let article = text.starts_with("a ") || text.starts_with("an ");
        let mut opened = text.starts_with("on ") || text.starts_with("at ");
        if manner != Manner::Short && (article || counted) {
            let opening = match dice.below(10) {
                0 => Some("a picture of"),
                1 if counted => Some("there are"),
                1 => Some("there is"),
                _ => None,
            };
            if let Some(opening) = opening {
                text = format!("{opening} {text}");
                opened = true;
            }
        }
        if let Some(background) = claims.background {
            let place = phrases::place(dice, background);
            text = if !opened && dice.percent(25) { format!("{place}, {text}") } else { format!("{text} {place}") };
        }
        Prompt { text, claims }
    }

    /// Which of what is true will be said.
    fn choose(&self, dice: &mut Dice, manner: Manner) -> Claims {
        let counted = is_count(self.objects());
        let mut objects: Vec<ClaimedObject> = Vec::with_capacity(self.objects().len());
        for object in self.objects() {
            let repeated = objects.first().copied().filter(|_| counted);
            objects.push(repeated.unwrap_or_else(|| describe(dice, object, manner, self.objects().len())));
        }
        let told = manner != Manner::Free || dice.percent(85);
        let relations = self
            .relation()
            .filter(|_| told)
            .map(|relation| ClaimedRelation { subject: 0, relation, reference: 1 })
            .into_iter()
            .collect();
        let background = (manner != Manner::Short && dice.percent(40)).then_some(self.background());
        Claims { objects, relations, background }
    }
}

fn describe(dice: &mut Dice, object: &Object, manner: Manner, company: usize) -> ClaimedObject {
    let size = if company > 2 { 10 } else { 30 };
    let fill = match (object.fill, company) {
        (Fill::Plain, ..=2) => 8,
        (Fill::Plain, _) => 0,
        _ => 75,
    };
    ClaimedObject {
        kind: object.kind,
        colour: (manner != Manner::Free || dice.percent(92)).then_some(object.colour),
        size: (manner != Manner::Short && dice.percent(size)).then(|| object.size()),
        fill: (manner != Manner::Short && dice.percent(fill)).then_some(object.fill),
    }
}
