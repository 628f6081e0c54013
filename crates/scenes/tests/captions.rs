//! What captions say. They are parsed here with a grammar of their own, which knows English and not how they were made.

use std::collections::HashSet;

use pixart_scenes::{
    Background, ClaimedObject, ClaimedRelation, Claims, Colour, Fill, Kind, MAX_WORDS, Relation, Scene, Size, Split,
    judge, test_prompts,
};

/// Words that stand before a place, which says nothing else.
const PLACES: [(&[&str], Background); 17] = [
    (&["in", "the", "sky"], Background::Sky),
    (&["in", "the", "blue", "sky"], Background::Sky),
    (&["at", "night"], Background::Night),
    (&["in", "the", "night"], Background::Night),
    (&["on", "a", "meadow"], Background::Meadow),
    (&["in", "a", "meadow"], Background::Meadow),
    (&["at", "sea"], Background::Sea),
    (&["by", "the", "sea"], Background::Sea),
    (&["on", "a", "grey", "background"], Background::Grey),
    (&["on", "grey"], Background::Grey),
    (&["on", "a", "pale", "blue", "background"], Background::PaleBlue),
    (&["on", "pale", "blue"], Background::PaleBlue),
    (&["on", "a", "pale", "green", "background"], Background::PaleGreen),
    (&["on", "pale", "green"], Background::PaleGreen),
    (&["on", "a", "pale", "yellow", "background"], Background::PaleYellow),
    (&["on", "pale", "yellow"], Background::PaleYellow),
    (&["on", "pale", "pink"], Background::PalePink),
];

/// Words between two objects that relate the first to the second.
const BETWEEN: [(&[&str], Relation); 14] = [
    (&["to", "the", "left", "of"], Relation::LeftOf),
    (&["left", "of"], Relation::LeftOf),
    (&["to", "the", "right", "of"], Relation::RightOf),
    (&["right", "of"], Relation::RightOf),
    (&["above"], Relation::Above),
    (&["over"], Relation::Above),
    (&["below"], Relation::Below),
    (&["under"], Relation::Below),
    (&["next", "to"], Relation::NextTo),
    (&["beside"], Relation::NextTo),
    (&["inside", "a"], Relation::Inside),
    (&["inside", "an"], Relation::Inside),
    (&["in", "a"], Relation::Inside),
    (&["in", "an"], Relation::Inside),
];

/// Words that put one object somewhere, and how it then lies to the other.
const SIDES: [(&[&str], Relation); 4] = [
    (&["on", "the", "left"], Relation::LeftOf),
    (&["on", "the", "right"], Relation::RightOf),
    (&["at", "the", "top"], Relation::Above),
    (&["at", "the", "bottom"], Relation::Below),
];

/// Words that say nothing.
const FILLERS: [&[&str]; 7] =
    [&["a", "picture", "of"], &["there", "is"], &["there", "are"], &["a"], &["an"], &["and"], &["with"]];

#[derive(Default)]
struct Parser {
    claims: Claims,
    next: Option<ClaimedObject>,
    count: usize,
    /// Where the next object is.
    side: Option<Relation>,
    /// A relation of the object before to the next.
    between: Option<Relation>,
}

fn blank(kind: Kind) -> ClaimedObject {
    ClaimedObject { kind, colour: None, size: None, fill: None }
}

fn kind_of(word: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| word == kind.noun() || word == kind.plural())
}

impl Parser {
    fn parse(text: &str) -> Claims {
        let text = text.replace(',', "");
        let words: Vec<&str> = text.split(' ').collect();
        // "On the left a star" and "a star on the left" put the side on different sides.
        let sides_first = longest(&SIDES, &words).is_some();
        let mut parser = Self { count: 1, ..Self::default() };
        let mut left = words.as_slice();
        while !left.is_empty() {
            left = parser.step(left, sides_first).unwrap_or_else(|| panic!("{left:?} of {text:?} is no English"));
        }
        assert_eq!(parser.next, None, "{text:?} ends before its noun");
        parser.claims
    }

    /// Understands the first words and returns the others.
    fn step<'a>(&mut self, words: &'a [&'a str], sides_first: bool) -> Option<&'a [&'a str]> {
        if let Some((rest, place)) = longest(&PLACES, words) {
            self.claims.background = Some(place);
            return Some(rest);
        }
        if let Some(rest) = after(words, &["on", "a", "pale", "pink", "background"]) {
            self.claims.background = Some(Background::PalePink);
            return Some(rest);
        }
        if let Some((rest, side)) = longest(&SIDES, words) {
            match (sides_first, self.claims.objects.len()) {
                (true, _) => self.side = Some(side),
                (false, objects) => self.relate(objects - 1, side, 2 - objects),
            }
            return Some(rest);
        }
        if let Some(rest) = after(words, &["side", "by", "side"]) {
            self.relate(0, Relation::NextTo, 1);
            return Some(rest);
        }
        if let Some(rest) = after(words, &["around"]) {
            // The next object is inside the one before.
            self.side = Some(Relation::Inside);
            return Some(rest);
        }
        if let Some((rest, relation)) = longest(&BETWEEN, words) {
            self.between = Some(relation);
            return Some(rest);
        }
        if let Some(rest) = after(words, &["inside"]) {
            self.relate(1, Relation::Inside, 0);
            return Some(rest);
        }
        for filler in FILLERS {
            if let Some(rest) = after(words, filler) {
                return Some(rest);
            }
        }
        let (word, rest) = words.split_first()?;
        if let Some(kind) = kind_of(word) {
            self.object(kind);
            return Some(after(rest, &["moon"]).or(after(rest, &["moons"])).unwrap_or(rest));
        }
        let next = self.next.get_or_insert(blank(Kind::Circle));
        match *word {
            "two" | "three" | "four" => {
                self.count = ["two", "three", "four"].iter().position(|number| number == word)? + 2;
            }
            "small" | "little" | "tiny" => next.size = Some(Size::Small),
            "medium" => next.size = Some(Size::Medium),
            "large" | "big" => next.size = Some(Size::Large),
            "plain" => next.fill = Some(Fill::Plain),
            "striped" => next.fill = Some(Fill::Striped),
            "dotted" | "spotted" => next.fill = Some(Fill::Dotted),
            colour => next.colour = Some(Colour::ALL.into_iter().find(|known| known.name() == colour)?),
        }
        Some(rest)
    }

    fn object(&mut self, kind: Kind) {
        let object = ClaimedObject { kind, ..self.next.take().unwrap_or(blank(kind)) };
        let index = self.claims.objects.len();
        self.claims.objects.extend(vec![object; std::mem::replace(&mut self.count, 1)]);
        if let Some(relation) = self.between.take() {
            self.relate(index - 1, relation, index);
        }
        if let Some(relation) = self.side.take() {
            self.relate(index, relation, 1 - index);
        }
    }

    fn relate(&mut self, subject: usize, relation: Relation, reference: usize) {
        // The second side says again what the first said.
        if self.claims.relations.is_empty() {
            self.claims.relations.push(ClaimedRelation { subject, relation, reference });
        }
    }
}

/// The words after a phrase, if they begin with it.
fn after<'a>(words: &'a [&'a str], phrase: &[&str]) -> Option<&'a [&'a str]> {
    let (start, rest) = words.split_at_checked(phrase.len())?;
    (start == phrase).then_some(rest)
}

/// The longest phrase that the words begin with: the words after it, and what it means.
fn longest<'a, T: Copy>(phrases: &[(&[&str], T)], words: &'a [&'a str]) -> Option<(&'a [&'a str], T)> {
    let matching = phrases.iter().filter_map(|(phrase, meaning)| Some((after(words, phrase)?, *meaning)));
    matching.min_by_key(|(rest, _)| rest.len())
}

fn turned(relation: Relation) -> Relation {
    match relation {
        Relation::LeftOf => Relation::RightOf,
        Relation::RightOf => Relation::LeftOf,
        Relation::Above => Relation::Below,
        Relation::Below => Relation::Above,
        same => same,
    }
}

/// Whether two claims say the same, in whatever order they name the objects.
fn same(parsed: &Claims, claimed: &Claims) -> bool {
    let objects = |claims: &Claims| {
        let mut words: Vec<String> = claims.objects.iter().map(|object| format!("{object:?}")).collect();
        words.sort();
        words
    };
    let relations = |claims: &Claims| {
        let named = |claim: &ClaimedRelation| {
            let (a, b) = (claims.objects[claim.subject], claims.objects[claim.reference]);
            let one = format!("{a:?} {:?} {b:?}", claim.relation);
            let other = format!("{b:?} {:?} {a:?}", turned(claim.relation));
            if claim.relation == Relation::Inside { one } else { one.min(other) }
        };
        claims.relations.iter().map(named).collect::<Vec<_>>()
    };
    objects(parsed) == objects(claimed)
        && relations(parsed) == relations(claimed)
        && parsed.background == claimed.background
}

#[test]
fn captions_say_what_they_claim() {
    for seed in 0..6000 {
        let prompt = Scene::random(seed, Split::Train).prompt(seed);
        let parsed = Parser::parse(&prompt.text);
        assert!(same(&parsed, &prompt.claims), "{}\n{parsed:?}\n{:?}", prompt.text, prompt.claims);
    }
    for prompt in test_prompts(500) {
        let parsed = Parser::parse(&prompt.text);
        assert!(same(&parsed, &prompt.claims), "{}\n{parsed:?}\n{:?}", prompt.text, prompt.claims);
    }
}

#[test]
fn claims_are_true_of_their_scenes() {
    for seed in 0..3000 {
        let scene = Scene::random(seed, Split::Test);
        let prompt = scene.prompt(seed + 1);
        let verdict = judge(&prompt.claims, &scene.truth());
        assert!(verdict.all_right && verdict.details == 1.0, "{} {scene:?} {verdict:?}", prompt.text);
        for (claim, object) in prompt.claims.objects.iter().zip(scene.objects()) {
            assert_eq!(claim.kind, object.kind);
            assert!(claim.colour.is_none_or(|colour| colour == object.colour));
        }
    }
}

#[test]
fn captions_are_short_and_in_few_words() {
    let mut vocabulary = HashSet::new();
    for seed in 0..8000 {
        let caption = Scene::random(seed, Split::Train).caption(seed);
        assert!(
            caption.chars().all(|letter| letter.is_ascii_lowercase() || letter == ' ' || letter == ','),
            "{caption}"
        );
        let words: Vec<String> = caption.replace(',', "").split(' ').map(str::to_owned).collect();
        assert!(words.len() <= MAX_WORDS, "{caption}");
        vocabulary.extend(words);
    }
    assert!((80..=150).contains(&vocabulary.len()), "{}", vocabulary.len());
}

#[test]
fn a_scene_has_many_wordings() {
    let scene = (0..).map(|seed| Scene::random(seed, Split::Train)).find(|scene| scene.relation().is_some());
    let scene = scene.expect("there is such a scene");
    let wordings: HashSet<String> = (0..200).map(|seed| scene.caption(seed)).collect();
    assert!(wordings.len() > 60, "{}", wordings.len());
    assert_eq!(scene.caption(5), scene.caption(5));
}
