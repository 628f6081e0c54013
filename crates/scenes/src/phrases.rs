//! The words of captions: how objects, relations and backgrounds are put.

use crate::attributes::{Fill, Size};
use crate::background::Background;
use crate::claims::ClaimedObject;
use crate::dice::Dice;
use crate::kind::Kind;
use crate::relation::Relation;

/// One object with its article: `"a small striped red fish"`.
pub(crate) fn one(dice: &mut Dice, object: &ClaimedObject) -> String {
    let words = bare(dice, object);
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {words}")
}

/// One object without an article: `"small striped red fish"`.
pub(crate) fn bare(dice: &mut Dice, object: &ClaimedObject) -> String {
    let noun = if object.kind == Kind::Crescent && dice.percent(50) { "crescent moon" } else { object.kind.noun() };
    described(dice, object, noun)
}

/// Several equal objects: `"three yellow stars"`.
pub(crate) fn several(dice: &mut Dice, object: &ClaimedObject, count: usize) -> String {
    let noun = if object.kind == Kind::Crescent && dice.percent(50) { "crescent moons" } else { object.kind.plural() };
    let number = match count {
        2 => "two",
        3 => "three",
        _ => "four",
    };
    format!("{number} {}", described(dice, object, noun))
}

fn described(dice: &mut Dice, object: &ClaimedObject, noun: &str) -> String {
    let size = object.size.map(|size| match size {
        Size::Small => dice.pick(["small", "small", "little", "tiny"]),
        Size::Medium => "medium",
        Size::Large => dice.pick(["large", "big"]),
    });
    let fill = object.fill.map(|fill| match fill {
        Fill::Plain => "plain",
        Fill::Striped => "striped",
        Fill::Dotted => dice.pick(["dotted", "dotted", "spotted"]),
    });
    let colour = object.colour.map(|colour| colour.name());
    let words: Vec<&str> = size.into_iter().chain(fill).chain(colour).chain([noun]).collect();
    words.join(" ")
}

/// How the first of two objects lies to the second, the objects already in words. Half of what can be said from the
/// other side is.
pub(crate) fn related(dice: &mut Dice, first: &str, relation: Relation, second: &str) -> String {
    let turned = match relation {
        Relation::LeftOf => Some(Relation::RightOf),
        Relation::RightOf => Some(Relation::LeftOf),
        Relation::Above => Some(Relation::Below),
        Relation::Below => Some(Relation::Above),
        Relation::NextTo => Some(Relation::NextTo),
        Relation::Inside => None,
    };
    let (a, relation, b) = match turned.filter(|_| dice.percent(50)) {
        Some(turned) => (second, turned, first),
        None => (first, relation, second),
    };
    let between = match relation {
        Relation::LeftOf => dice.pick(["to the left of", "to the left of", "left of", ""]),
        Relation::RightOf => dice.pick(["to the right of", "to the right of", "right of", ""]),
        Relation::Above => dice.pick(["above", "above", "over", ""]),
        Relation::Below => dice.pick(["below", "below", "under", ""]),
        Relation::Inside => dice.pick(["inside", "inside", "in", ""]),
        Relation::NextTo => dice.pick(["next to", "next to", "beside", ""]),
    };
    if !between.is_empty() {
        return format!("{a} {between} {b}");
    }
    let listed = dice.percent(50);
    match relation {
        Relation::LeftOf if listed => format!("on the left {a}, on the right {b}"),
        Relation::LeftOf => format!("{a} on the left and {b} on the right"),
        Relation::RightOf if listed => format!("on the right {a}, on the left {b}"),
        Relation::RightOf => format!("{a} on the right and {b} on the left"),
        Relation::Above if listed => format!("at the top {a}, at the bottom {b}"),
        Relation::Above => format!("{a} at the top and {b} at the bottom"),
        Relation::Below if listed => format!("at the bottom {a}, at the top {b}"),
        Relation::Below => format!("{a} at the bottom and {b} at the top"),
        Relation::Inside if listed => format!("{b} with {a} inside"),
        Relation::Inside => format!("{b} around {a}"),
        Relation::NextTo => format!("{a} and {b} side by side"),
    }
}

/// Objects one after another, already in words: `"a, b and c"`.
pub(crate) fn listed(objects: &[String]) -> String {
    match objects {
        [most @ .., last] if !most.is_empty() => format!("{} and {last}", most.join(", ")),
        objects => objects.concat(),
    }
}

/// Where it all is: `"on a pale blue background"`, `"at night"`.
pub(crate) fn place(dice: &mut Dice, background: Background) -> String {
    let name = background.name();
    match background {
        Background::Sky => dice.pick(["in the sky", "in the blue sky"]).to_owned(),
        Background::Night => dice.pick(["at night", "at night", "in the night"]).to_owned(),
        Background::Meadow => dice.pick(["on a meadow", "in a meadow"]).to_owned(),
        Background::Sea => dice.pick(["at sea", "by the sea"]).to_owned(),
        _ if dice.percent(70) => format!("on a {name} background"),
        _ => format!("on {name}"),
    }
}
