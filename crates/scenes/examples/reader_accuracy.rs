//! Measures the reader: how often it agrees that a drawn scene shows what is true of it, clean and spoilt in several ways; how
//! often it accepts prompts that are wrong; what it mistakes for what; and how long drawing and reading take.
//!
//! `cargo run --release -p pixart-scenes --example reader_accuracy -- [SCENES]`

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::{Random, bent, distorted, with_a_mistake};
use pixart_scenes::{Claims, Reading, Relation, Scene, Sighting, Split, judge, read};

/// What is done to pictures before they are read.
struct Condition {
    name: &'static str,
    /// Deviation in pixels.
    blur: f32,
    /// Deviation in levels.
    noise: f32,
    /// How far shapes wobble, in pixels.
    wobble: f32,
    /// How much lighter or darker channels are, in levels.
    tint: i32,
}

const CLEAN: Condition = Condition { name: "clean", blur: 0.0, noise: 0.0, wobble: 0.0, tint: 0 };

const CONDITIONS: [Condition; 6] = [
    CLEAN,
    Condition { name: "blurred", blur: 1.0, ..CLEAN },
    Condition { name: "noisy", noise: 8.0, ..CLEAN },
    Condition { name: "blurred and noisy", blur: 1.0, noise: 8.0, ..CLEAN },
    Condition { name: "bent, tinted, blurred and noisy", blur: 1.0, noise: 8.0, wobble: 1.5, tint: 10 },
    Condition { name: "twice as blurred, noisier", blur: 2.0, noise: 12.0, ..CLEAN },
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(2000), |count| count.parse())?;
    read(&Scene::random(0, Split::Train).draw(128));
    for split in [Split::Train, Split::Test] {
        let scenes: Vec<Scene> = (0..count).map(|seed| Scene::random(seed, split)).collect();
        for condition in &CONDITIONS {
            println!("{split:?}, {}:", condition.name);
            let mut report = Report::default();
            let readings: Vec<Reading> = scenes.iter().map(|scene| report.add(scene, condition)).collect();
            report.print();
            report_mistakes(&scenes, &readings);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Report {
    random: Random,
    drawing: Duration,
    reading: Duration,
    /// By number of objects: scenes, and those all right.
    shares: [(usize, usize); 5],
    /// Scenes all right by their relation.
    relations: HashMap<Relation, (usize, usize)>,
    details: f32,
    mistakes: HashMap<String, usize>,
}

impl Report {
    fn add(&mut self, scene: &Scene, condition: &Condition) -> Reading {
        let start = Instant::now();
        let drawn = scene.draw(128);
        self.drawing += start.elapsed();
        let picture = bent(&drawn, condition.wobble, condition.tint, &mut self.random);
        let picture = distorted(&picture, condition.blur, condition.noise, &mut self.random);
        let start = Instant::now();
        let reading = read(&picture);
        self.reading += start.elapsed();

        let verdict = judge(&scene.claims(), &reading);
        let shares = [
            Some(&mut self.shares[scene.objects().len()]),
            scene.relation().map(|relation| self.relations.entry(relation).or_default()),
        ];
        for share in shares.into_iter().flatten() {
            share.0 += 1;
            share.1 += usize::from(verdict.all_right);
        }
        self.details += verdict.details;
        self.note_mistakes(&scene.truth(), &reading);
        reading
    }

    fn note_mistakes(&mut self, truth: &Reading, reading: &Reading) {
        let mut note = |text: String| *self.mistakes.entry(text).or_default() += 1;
        if truth.background != reading.background {
            note(format!("{:?} read as {:?}", truth.background, reading.background));
        }
        let mut left: Vec<&Sighting> = reading.objects.iter().collect();
        for object in &truth.objects {
            let distance = |seen: &Sighting| {
                let [x, y] = [0, 1].map(|axis| seen.centre[axis] - object.centre[axis]);
                // Objects that surround others have the same centre.
                x.hypot(y) + (seen.bounds[2] - seen.bounds[0] - object.bounds[2] + object.bounds[0]).abs()
            };
            let nearest = left.iter().enumerate().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
            let Some(index) = nearest.filter(|(_, seen)| distance(seen) < 0.15).map(|(index, _)| index) else {
                note(format!("{:?} {:?} not found", object.colour, object.kind));
                continue;
            };
            let seen = left.remove(index);
            if seen.kind != object.kind {
                note(format!("{:?} {:?} read as {:?}", object.size, object.kind, seen.kind));
            }
            if seen.colour != object.colour {
                note(format!("{:?} read as {:?}", object.colour, seen.colour));
            }
            if seen.size != object.size {
                note(format!("{:?} {:?} read as {:?}", object.size, object.kind, seen.size));
            }
            if seen.fill != object.fill {
                note(format!("{:?} {:?} {:?} read as {:?}", object.fill, object.size, object.kind, seen.fill));
            }
        }
        for seen in left {
            note(format!("{:?} {:?} that is not there", seen.colour, seen.kind));
        }
    }

    fn print(&self) {
        let (scenes, right) = self.shares.iter().fold((0, 0), |sum, share| (sum.0 + share.0, sum.1 + share.1));
        print!("  all right {:.2} %;", percent(right, scenes));
        for (objects, (scenes, right)) in self.shares.iter().enumerate().skip(1) {
            print!(" {objects}: {:.2} %;", percent(*right, *scenes));
        }
        println!(" details {:.2} %", 100.0 * self.details / scenes as f32);
        let relations: Vec<String> = Relation::ALL
            .iter()
            .filter_map(|relation| Some((relation, self.relations.get(relation)?)))
            .map(|(relation, (scenes, right))| format!("{relation:?} {:.1} %", percent(*right, *scenes)))
            .collect();
        println!("  {}", relations.join(", "));
        let each = |time: Duration| time.as_secs_f64() * 1e3 / scenes as f64;
        println!("  drawing {:.2} ms, reading {:.2} ms", each(self.drawing), each(self.reading));
        let mut mistakes: Vec<_> = self.mistakes.iter().collect();
        mistakes.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        for (mistake, times) in mistakes.into_iter().take(12) {
            println!("  {times:4} {mistake}");
        }
    }
}

/// How often wrong claims are accepted: those of another scene, and those with one thing changed. What is true of the
/// scene all the same is not counted.
fn report_mistakes(scenes: &[Scene], readings: &[Reading]) {
    let mut random = Random::default();
    let wrong = |scene: &Scene, claims: &Claims| !judge(claims, &scene.truth()).all_right;
    let (mut other, mut changed) = ((0, 0), (0, 0));
    for (index, (scene, reading)) in scenes.iter().zip(readings).enumerate() {
        let prompts = [
            (&mut other, scenes[random.below(scenes.len())].prompt(index as u64).claims),
            (&mut changed, with_a_mistake(&scene.prompt(index as u64).claims, &mut random)),
        ];
        for (counts, claims) in prompts {
            if wrong(scene, &claims) {
                counts.0 += 1;
                counts.1 += usize::from(judge(&claims, reading).all_right);
            }
        }
    }
    println!(
        "  accepted: of {} prompts of other scenes {:.2} %, of {} with one mistake {:.2} %",
        other.0,
        percent(other.1, other.0),
        changed.0,
        percent(changed.1, changed.0)
    );
}

fn percent(part: usize, all: usize) -> f64 {
    100.0 * part as f64 / all.max(1) as f64
}
