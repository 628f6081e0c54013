//! Whether a picture shows what a prompt says.

use crate::claims::{ClaimedObject, ClaimedRelation, Claims};
use crate::reading::{Reading, Sighting};
use crate::relation::Relation;

/// How far the middles of two objects must be apart for one to lie left, right, above or below, as a part of the picture's
/// side.
const LEAST_DISTANCE: f32 = 0.05;

/// The widest gap between two objects that are next to each other, as a part of the picture's side.
const WIDEST_GAP: f32 = 0.16;

/// How far the box of what is inside may stick out of the other's, as a part of the picture's side.
const OVERHANG: f32 = 0.02;

/// A picture's agreement with a prompt. Shares are from 0 to 1, and 1 where the prompt claims nothing of the sort.
///
/// Each claimed object is given at most one of the objects that are seen, so that as many as possible have kind and
/// colour right; of what remains possible, so that most kinds, then most colours, then most relations, then most details
/// are right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The share of the claimed objects that are there, by kind.
    pub objects: f32,
    /// The share of the mentioned colours that their objects have. An object of another kind that stands in for a
    /// claimed one counts, if it has the colour.
    pub colours: f32,
    /// Whether as many objects are seen as are claimed: none is missing and none was not asked for.
    pub counts: bool,
    /// The share of the mentioned relations that hold between the objects given to them, whatever these are.
    pub relations: f32,
    /// Whether the background is the one that is mentioned; `None` if none is.
    pub background: Option<bool>,
    /// The share of the mentioned sizes and fills that are right. They count nowhere else.
    pub details: f32,
    /// Whether all objects, colours and relations are right, and the count, and the background if one is mentioned.
    pub all_right: bool,
}

/// Compares what a prompt claims with what a picture shows. Meant for prompts of up to four objects: the time grows with
/// the number of ways to assign them.
pub fn judge(claims: &Claims, reading: &Reading) -> Verdict {
    let mut search = Search { claims, seen: &reading.objects, given: Vec::new(), best: Score::default() };
    search.assign();
    let score = search.best;

    let colours = claims.objects.iter().filter(|object| object.colour.is_some()).count();
    let details = claims.objects.iter().map(detail_count).sum();
    let counts = claims.objects.len() == reading.objects.len();
    let background = claims.background.map(|background| reading.background == Some(background));
    let all_right = counts
        && background != Some(false)
        && score.kinds == claims.objects.len()
        && score.colours == colours
        && score.relations == claims.relations.len();
    Verdict {
        objects: share(score.kinds, claims.objects.len()),
        colours: share(score.colours, colours),
        counts,
        relations: share(score.relations, claims.relations.len()),
        background,
        details: share(score.details, details),
        all_right,
    }
}

fn share(right: usize, all: usize) -> f32 {
    if all == 0 { 1.0 } else { right as f32 / all as f32 }
}

/// What is right under an assignment, in the order in which assignments are compared.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    objects: usize,
    kinds: usize,
    colours: usize,
    relations: usize,
    details: usize,
}

/// Tries all assignments: there are few, because objects are few.
struct Search<'a> {
    claims: &'a Claims,
    seen: &'a [Sighting],
    given: Vec<Option<usize>>,
    best: Score,
}

impl Search<'_> {
    /// More objects than this in a picture are not tried: the largest are, which come first.
    const MOST_SEEN: usize = 8;

    fn assign(&mut self) {
        if self.given.len() == self.claims.objects.len() {
            self.best = self.best.max(self.score());
            return;
        }
        let seen = self.seen.len().min(Self::MOST_SEEN);
        let free: Vec<usize> = (0..seen).filter(|index| !self.given.contains(&Some(*index))).collect();
        for choice in free.into_iter().map(Some).chain([None]) {
            self.given.push(choice);
            self.assign();
            self.given.pop();
        }
    }

    fn score(&self) -> Score {
        let mut score = Score::default();
        for (claim, given) in self.claims.objects.iter().zip(&self.given) {
            let Some(seen) = given.and_then(|index| self.seen.get(index)) else {
                continue;
            };
            let kind = seen.kind == Some(claim.kind);
            let colour = claim.colour.map(|colour| colour == seen.colour);
            score.kinds += usize::from(kind);
            score.colours += usize::from(colour == Some(true));
            score.objects += usize::from(kind && colour != Some(false));
            score.details += usize::from(claim.size == Some(seen.size));
            score.details += usize::from(claim.fill.is_some() && claim.fill == seen.fill);
        }
        score.relations = self.claims.relations.iter().filter(|relation| self.holds(relation)).count();
        score
    }

    fn holds(&self, claim: &ClaimedRelation) -> bool {
        let seen = |index: usize| self.given.get(index).copied().flatten().and_then(|index| self.seen.get(index));
        match (seen(claim.subject), seen(claim.reference)) {
            (Some(subject), Some(reference)) => holds(subject, claim.relation, reference),
            _ => false,
        }
    }
}

fn detail_count(object: &ClaimedObject) -> usize {
    usize::from(object.size.is_some()) + usize::from(object.fill.is_some())
}

/// Directions hold within 45° of the axis; an object inside another lies in no direction from it.
fn holds(subject: &Sighting, relation: Relation, reference: &Sighting) -> bool {
    let right = subject.centre[0] - reference.centre[0];
    let down = subject.centre[1] - reference.centre[1];
    let apart = !is_inside(subject, reference) && !is_inside(reference, subject);
    let towards = |along: f32, across: f32| apart && along >= LEAST_DISTANCE && along >= across.abs();
    match relation {
        Relation::LeftOf => towards(-right, down),
        Relation::RightOf => towards(right, down),
        Relation::Above => towards(-down, right),
        Relation::Below => towards(down, right),
        Relation::Inside => is_inside(subject, reference),
        Relation::NextTo => towards(right.abs(), down) && gap(subject, reference) <= WIDEST_GAP,
    }
}

fn is_inside(inner: &Sighting, outer: &Sighting) -> bool {
    let ([left, top, right, bottom], [outer_left, outer_top, outer_right, outer_bottom]) = (inner.bounds, outer.bounds);
    left >= outer_left - OVERHANG
        && top >= outer_top - OVERHANG
        && right <= outer_right + OVERHANG
        && bottom <= outer_bottom + OVERHANG
        && (right - left) * (bottom - top) < (outer_right - outer_left) * (outer_bottom - outer_top)
}

/// The horizontal distance between two boxes; negative if they overlap.
fn gap(a: &Sighting, b: &Sighting) -> f32 {
    a.bounds[0].max(b.bounds[0]) - a.bounds[2].min(b.bounds[2])
}
