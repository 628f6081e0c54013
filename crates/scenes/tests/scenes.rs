//! What is drawn: the same everywhere, inside the picture, apart, and as the relation says.

use std::collections::HashMap;

use pixart_scenes::{Kind, Object, Picture, Relation, Scene, Split};

fn scenes(count: u64) -> impl Iterator<Item = Scene> {
    (0..count).flat_map(|seed| [Split::Train, Split::Test].map(|split| Scene::random(seed, split)))
}

/// FNV-1a of 64 bits.
fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Left, top, right and bottom in thousandths of the picture's side.
fn bounds(object: &Object) -> [i32; 4] {
    let (width, height) = object.dimensions();
    let (x, y) = object.centre;
    [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let bytes = scenes(100).flat_map(|scene| scene.draw(64).into_pixels());
    assert_eq!(hash(bytes), BYTES);
    let words = scenes(100).flat_map(|scene| scene.caption(3).into_bytes());
    assert_eq!(hash(words), WORDS);
}

/// The hashes of what was drawn and said when this was written. Whoever changes the pictures changes them.
const BYTES: u64 = 0x31be12b7dffa498b;
const WORDS: u64 = 0xecfb2ba4326c7a7e;

#[test]
fn objects_lie_inside_the_picture_and_apart() {
    for scene in scenes(2000) {
        for (index, object) in scene.objects().iter().enumerate() {
            let [left, top, right, bottom] = bounds(object);
            assert!(left >= 20 && top >= 20 && right <= 980 && bottom <= 980, "{scene:?}");
            for other in &scene.objects()[..index] {
                if scene.relation() == Some(Relation::Inside) {
                    continue;
                }
                let [other_left, other_top, other_right, other_bottom] = bounds(other);
                let across = (left - other_right).max(other_left - right);
                let down = (top - other_bottom).max(other_top - bottom);
                assert!(across.max(down) >= 40, "{scene:?}");
            }
        }
    }
}

#[test]
fn what_is_inside_another_touches_nothing_of_it() {
    let mut rings = 0;
    for scene in scenes(4000).filter(|scene| scene.relation() == Some(Relation::Inside)) {
        let [inner, outer] = scene.objects() else { panic!("{scene:?} has no pair") };
        assert_ne!(inner.colour, outer.colour);
        let (x, y) = (inner.centre.0 - outer.centre.0, inner.centre.1 - outer.centre.1);
        let (width, height) = inner.dimensions();
        // The distance of the farthest corner of the inner box from the middle of the outer object.
        let farthest = f64::from(x.abs() + width / 2).hypot(f64::from(y.abs() + height / 2));
        let room = match outer.kind {
            Kind::Ring => 0.335 * f64::from(outer.extent),
            Kind::Circle | Kind::Square => 0.5 * f64::from(outer.extent),
            other => panic!("nothing is inside a {other:?}"),
        };
        assert!(farthest + 10.0 < room, "{scene:?}");
        rings += usize::from(outer.kind == Kind::Ring);
    }
    assert!(rings > 50);
}

#[test]
fn pairs_lie_as_their_relation_says() {
    for scene in scenes(3000) {
        let Some(relation) = scene.relation() else { continue };
        let [first, second] = scene.objects() else { panic!("{scene:?} has no pair") };
        let ([left, top, right, bottom], other) = (bounds(first), bounds(second));
        let holds = match relation {
            Relation::LeftOf => right < other[0],
            Relation::RightOf => left > other[2],
            Relation::Above => bottom < other[1],
            Relation::Below => top > other[3],
            Relation::Inside => left > other[0] && top > other[1] && right < other[2] && bottom < other[3],
            Relation::NextTo => {
                let gap = (left - other[2]).max(other[0] - right);
                (40..=90).contains(&gap) && top < other[3] && bottom > other[1]
            }
        };
        assert!(holds, "{scene:?}");
    }
}

#[test]
fn scenes_have_as_many_objects_as_they_should() {
    let (mut singles, mut pairs, mut counts, mut several) = (0, 0, 0, 0);
    for seed in 0..4000 {
        let scene = Scene::random(seed, Split::Train);
        let mut things = HashMap::new();
        for object in scene.objects() {
            *things.entry((object.kind, object.colour)).or_insert(0) += 1;
        }
        match (scene.objects().len(), scene.relation(), things.len()) {
            (1, None, 1) => singles += 1,
            (2, Some(_), 2) => pairs += 1,
            (2..=4, None, 1) => counts += 1,
            (3..=4, None, 3..=4) => several += 1,
            other => panic!("{other:?}"),
        }
    }
    for (found, wanted) in [(singles, 1080), (pairs, 1880), (counts, 520), (several, 520)] {
        assert!(i32::abs(found - wanted) < 120, "{found} is not about {wanted}");
    }
}

#[test]
fn objects_have_colours_that_their_background_suits() {
    for scene in scenes(1000) {
        assert!(scene.objects().iter().all(|object| scene.background().suits(object.colour)), "{scene:?}");
    }
}

/// Every pixel of half the size is nearly the mean of four.
#[test]
fn all_sizes_look_alike() {
    let pixel = |picture: &Picture, x: usize, y: usize, channel: usize| {
        i32::from(picture.pixels()[(y * picture.width() + x) * 3 + channel])
    };
    for scene in scenes(20) {
        let (small, large) = (scene.draw(64), scene.draw(128));
        let mut sum = 0;
        for (index, value) in small.pixels().iter().enumerate() {
            let (x, y, channel) = (index / 3 % 64 * 2, index / 3 / 64 * 2, index % 3);
            let four =
                [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(right, down)| pixel(&large, x + right, y + down, channel));
            sum += (four.iter().sum::<i32>() / 4 - i32::from(*value)).abs();
        }
        assert!(sum < 2 * small.pixels().len() as i32, "{scene:?}");
    }
}

#[test]
fn impossible_sizes_are_empty() {
    let scene = Scene::random(1, Split::Train);
    for size in [0, 8193, u32::MAX] {
        assert!(scene.draw(size).pixels().is_empty());
    }
    assert!(Picture::from_rgb(2, 2, vec![0; 11]).is_err());
}

/// Where the picture has an object's colours and its outline is, there the object is said to be, and nowhere else.
#[test]
fn occupants_are_where_objects_are_drawn() {
    const SIDE: usize = 128;
    for seed in 0..40 {
        let scene = Scene::random(seed, Split::Train);
        let picture = scene.draw(SIDE as u32);
        let occupants = scene.occupants(SIDE as u32);
        assert_eq!(occupants.len(), SIDE * SIDE);
        for (index, object) in scene.objects().iter().enumerate() {
            let (width, height) = object.dimensions();
            let within = |at: usize, middle: i32, length: i32| {
                let at = (1000 * at as i32 + 500) / SIDE as i32;
                (at - middle).abs() <= length / 2 + 8
            };
            let (mut cells, mut coloured) = (0, 0);
            for (cell, _) in occupants.iter().enumerate().filter(|(_, occupant)| **occupant == Some(index)) {
                let (x, y) = (cell % SIDE, cell / SIDE);
                assert!(within(x, object.centre.0, width) && within(y, object.centre.1, height), "{seed}: {x}, {y}");
                let pixel = &picture.pixels()[3 * cell..3 * cell + 3];
                let near = |colour: [u8; 3]| pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 24);
                cells += 1;
                coloured += usize::from(near(object.colour.rgb()) || near(object.colour.shade()));
            }
            // Edges are mixed with what is behind them.
            assert!(cells > 100 && 10 * coloured >= 6 * cells, "{seed}: {coloured} of {cells} for {object:?}");
        }
    }
}
