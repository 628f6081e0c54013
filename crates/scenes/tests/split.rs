//! What is kept out of training, and what is not.

use std::collections::HashSet;

use pixart_scenes::{Colour, Kind, Relation, Scene, Split, is_held_out, is_pair_held_out, test_prompts};

fn has_held_out(scene: &Scene) -> bool {
    let pair = match (scene.objects(), scene.relation()) {
        ([a, b], Some(relation)) => is_pair_held_out((a.kind, a.colour), relation, (b.kind, b.colour)),
        _ => false,
    };
    pair || scene.objects().iter().any(|object| is_held_out(object.kind, object.colour))
}

#[test]
fn training_never_has_held_out_combinations_and_tests_always_have() {
    for seed in 0..5000 {
        assert!(!has_held_out(&Scene::random(seed, Split::Train)), "{seed}");
        assert!(has_held_out(&Scene::random(seed, Split::Test)), "{seed}");
    }
}

#[test]
fn about_a_tenth_is_held_out() {
    let things: Vec<_> = Kind::ALL.into_iter().flat_map(|kind| Colour::ALL.map(|colour| (kind, colour))).collect();
    let held_out = things.iter().filter(|(kind, colour)| is_held_out(*kind, *colour)).count();
    assert!((12..=20).contains(&held_out), "{held_out} of {}", things.len());

    let pairs = things.iter().flat_map(|a| things.iter().map(move |b| (*a, *b)));
    for relation in Relation::ALL {
        let held_out = pairs.clone().filter(|(a, b)| is_pair_held_out(*a, relation, *b)).count();
        assert!((2400..=2720).contains(&held_out), "{relation:?}: {held_out} of {}", things.len().pow(2));
    }
}

#[test]
fn a_pair_that_is_turned_round_is_the_same() {
    let (a, b) = ((Kind::Star, Colour::Red), (Kind::Tree, Colour::Blue));
    for colour in Colour::ALL {
        let a = (a.0, colour);
        for (relation, turned) in [
            (Relation::LeftOf, Relation::RightOf),
            (Relation::Above, Relation::Below),
            (Relation::NextTo, Relation::NextTo),
        ] {
            assert_eq!(is_pair_held_out(a, relation, b), is_pair_held_out(b, turned, a));
        }
    }
}

#[test]
fn every_kind_and_colour_is_seen_in_training() {
    for kind in Kind::ALL {
        assert!(Colour::ALL.iter().filter(|colour| !is_held_out(kind, **colour)).count() >= 6, "{kind:?}");
    }
    for colour in Colour::ALL {
        assert!(Kind::ALL.iter().filter(|kind| !is_held_out(**kind, colour)).count() >= 10, "{colour:?}");
    }
    let (mut kinds, mut colours) = (HashSet::new(), HashSet::new());
    for seed in 0..300 {
        for object in Scene::random(seed, Split::Train).objects() {
            kinds.insert(object.kind);
            colours.insert(object.colour);
        }
    }
    assert_eq!((kinds.len(), colours.len()), (Kind::ALL.len(), Colour::ALL.len()));
}

#[test]
fn test_prompts_are_fixed_different_and_held_out() {
    let prompts = test_prompts(400);
    assert_eq!(prompts[..50], test_prompts(50));
    let texts: HashSet<&str> = prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    assert_eq!(texts.len(), 400);

    let mut sizes = [0; 5];
    for prompt in &prompts {
        let things: Vec<_> = prompt
            .claims
            .objects
            .iter()
            .map(|object| (object.kind, object.colour.expect("the colour is always mentioned")))
            .collect();
        sizes[things.len()] += 1;
        let pair = prompt
            .claims
            .relations
            .iter()
            .any(|claim| is_pair_held_out(things[claim.subject], claim.relation, things[claim.reference]));
        assert!(pair || things.iter().any(|(kind, colour)| is_held_out(*kind, *colour)), "{}", prompt.text);
    }
    assert_eq!(sizes[1], 160);
    assert!(sizes[2] >= 160 && sizes[3] >= 30 && sizes[4] >= 10, "{sizes:?}");
}
