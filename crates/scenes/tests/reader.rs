//! What the reader sees, and what the judge makes of it.

mod common;

use common::{Random, bent, distorted, with_a_mistake};
use pixart_scenes::{
    Background, Claims, Colour, Fill, Kind, Picture, Reading, Relation, Scene, Size, Split, judge, read,
};

/// The share of scenes that the reader finds all of what is true of, from pictures of some size.
fn share_right(count: u64, size: u32, change: impl Fn(Picture, &mut Random) -> Picture) -> f64 {
    let mut random = Random::default();
    let mut right = 0;
    for seed in 0..count {
        let scene = Scene::random(seed, if seed % 2 == 0 { Split::Train } else { Split::Test });
        let picture = change(scene.draw(size), &mut random);
        right += usize::from(judge(&scene.claims(), &read(&picture)).all_right);
    }
    right as f64 / count as f64
}

#[test]
fn drawn_scenes_are_read() {
    let share = share_right(300, 128, |picture, _| picture);
    assert!(share >= 0.98, "{share}");
}

#[test]
fn blurred_and_noisy_scenes_are_read() {
    let share = share_right(150, 128, |picture, random| distorted(&picture, 1.0, 8.0, random));
    assert!(share >= 0.95, "{share}");
}

#[test]
fn bent_and_tinted_scenes_are_read() {
    let share = share_right(100, 128, |picture, random| bent(&picture, 1.5, 10, random));
    assert!(share >= 0.95, "{share}");
}

#[test]
fn other_sizes_are_read() {
    for size in [64, 96, 256] {
        let share = share_right(40, size, |picture, _| picture);
        assert!(share >= 0.93, "{size}: {share}");
    }
}

#[test]
fn sizes_and_fills_are_read() {
    let mut details = 0.0;
    for seed in 0..150 {
        let scene = Scene::random(seed, Split::Train);
        details += judge(&scene.claims(), &read(&scene.draw(128))).details;
    }
    assert!(details / 150.0 > 0.97, "{details}");
}

#[test]
fn wrong_prompts_are_rejected() {
    let mut random = Random::default();
    let (mut wrong, mut accepted) = (0, 0);
    for seed in 0..150 {
        let scene = Scene::random(seed, Split::Train);
        let reading = read(&scene.draw(128));
        let other = Scene::random(seed + 1, Split::Train).prompt(seed).claims;
        for claims in [other, with_a_mistake(&scene.prompt(seed).claims, &mut random)] {
            // What is true of the scene all the same is no mistake.
            if !judge(&claims, &scene.truth()).all_right {
                wrong += 1;
                accepted += usize::from(judge(&claims, &reading).all_right);
            }
        }
    }
    assert!(wrong > 200 && accepted * 100 <= wrong, "{accepted} of {wrong}");
}

/// Pictures that were never drawn: what is true of them follows from how their pixels were moved.
#[test]
fn mirrored_pictures_show_the_other_side() {
    let mut pairs = 0;
    for seed in 0..500 {
        let scene = Scene::random(seed, Split::Train);
        // Of the painted backgrounds the mirror makes others.
        if scene.relation() != Some(Relation::LeftOf) || scene.background().is_painted() {
            continue;
        }
        let picture = scene.draw(128);
        let rows = picture.pixels().chunks_exact(128 * 3);
        let pixels = rows.flat_map(|row| row.as_chunks::<3>().0.iter().rev().flatten()).copied().collect();
        let mirrored = read(&Picture::from_rgb(128, 128, pixels).expect("the picture has kept its size"));
        let mut claims = scene.claims();
        assert!(!judge(&claims, &mirrored).all_right, "{scene:?}");
        claims.relations[0].relation = Relation::RightOf;
        assert!(judge(&claims, &mirrored).all_right, "{scene:?} {mirrored:?}");
        pairs += 1;
    }
    assert!(pairs >= 5);
}

#[test]
fn a_square_of_pixels_is_a_square() {
    let [red, green, blue] = Colour::Purple.rgb();
    let mut pixels = Vec::new();
    for pixel in 0..128 * 128 {
        let (x, y) = (pixel % 128, pixel / 128);
        let inside = (20..68).contains(&x) && (60..108).contains(&y);
        pixels.extend(if inside { [red, green, blue] } else { [204, 234, 204] });
    }
    let reading = read(&Picture::from_rgb(128, 128, pixels).expect("there are enough pixels"));
    assert_eq!(reading.background, Some(Background::PaleGreen));
    let [seen] = reading.objects.as_slice() else { panic!("{reading:?}") };
    let found = (seen.kind, seen.colour, seen.size, seen.fill);
    assert_eq!(found, (Some(Kind::Square), Colour::Purple, Size::Medium, Some(Fill::Plain)));
    for (found, wanted) in seen.bounds.into_iter().zip([20.0, 60.0, 68.0, 108.0]) {
        assert!((found * 128.0 - wanted).abs() <= 1.0, "{seen:?}");
    }
}

#[test]
fn empty_and_meaningless_pictures_show_no_objects_that_are_known() {
    let empty = Picture::from_rgb(0, 0, Vec::new()).expect("nothing is enough");
    assert_eq!(read(&empty), Reading::default());
    assert!(read(&Picture::from_rgb(1, 1, vec![255, 0, 0]).expect("one pixel")).objects.len() <= 1);

    let mut random = Random::default();
    for _ in 0..5 {
        let noise = (0..128 * 128 * 3).map(|_| random.next() as u8).collect();
        let reading = read(&Picture::from_rgb(128, 128, noise).expect("there are enough pixels"));
        let claims = Scene::random(random.next(), Split::Train).claims();
        assert!(!judge(&claims, &reading).all_right);
    }
}

/// One scene of two objects, and claims that are wrong in one respect each.
#[test]
fn each_share_says_what_is_wrong() {
    let scene = (0..)
        .map(|seed| Scene::random(seed, Split::Train))
        .find(|scene| scene.relation() == Some(Relation::Above))
        .expect("there is such a scene");
    let truth = scene.truth();
    let verdict = |change: fn(&mut Claims)| {
        let mut claims = scene.claims();
        change(&mut claims);
        judge(&claims, &truth)
    };
    let right = verdict(|_| ());
    assert!(right.all_right && right.counts && right.background == Some(true));
    assert_eq!((right.objects, right.colours, right.relations, right.details), (1.0, 1.0, 1.0, 1.0));

    let kind = verdict(|claims| {
        let there: Vec<Kind> = claims.objects.iter().map(|object| object.kind).collect();
        let other = Kind::ALL.into_iter().find(|kind| !there.contains(kind));
        claims.objects[0].kind = other.expect("there are more than two");
    });
    assert_eq!((kind.objects, kind.colours, kind.relations, kind.all_right), (0.5, 1.0, 1.0, false));

    let colour = verdict(|claims| {
        let there: Vec<_> = claims.objects.iter().map(|object| object.colour).collect();
        claims.objects[0].colour = Colour::ALL.into_iter().map(Some).find(|colour| !there.contains(colour)).flatten();
    });
    assert_eq!((colour.objects, colour.colours, colour.all_right), (1.0, 0.5, false));

    let relation = verdict(|claims| claims.relations[0].relation = Relation::LeftOf);
    assert_eq!((relation.objects, relation.colours, relation.relations, relation.all_right), (1.0, 1.0, 0.0, false));

    let missing = verdict(|claims| claims.objects.push(claims.objects[0]));
    assert!(!missing.counts && !missing.all_right && missing.objects < 1.0);
    let unasked = verdict(|claims| {
        claims.objects.pop();
        claims.relations.clear();
    });
    assert!(!unasked.counts && !unasked.all_right && unasked.objects == 1.0);

    let size = verdict(|claims| {
        claims.objects[0].size = Size::ALL.into_iter().map(Some).find(|size| *size != claims.objects[0].size).flatten();
    });
    assert_eq!((size.details, size.all_right), (0.75, true));

    let background = verdict(|claims| {
        let there = claims.background;
        claims.background = Background::ALL.into_iter().map(Some).find(|other| *other != there).flatten();
    });
    assert_eq!((background.background, background.all_right), (Some(false), false));
}
