//! A small world of pictures that draws itself, says in words what it drew, and judges what others draw.
//!
//! A [`Scene`] has one to four objects before a background; [`Scene::random`] makes one from a seed, [`Scene::draw`] the
//! picture of any size and [`Scene::prompt`] a caption with what it [claims](Claims). A model that is trained on
//! such pairs is asked for [`test_prompts`], whose combinations it has never seen; [`read`] tells from the pixels alone
//! what its pictures show, and [`judge`] whether that is what the prompt says.
//!
//! ```
//! use pixart_scenes::{Scene, Split, judge, read};
//!
//! let scene = Scene::random(7, Split::Train);
//! let prompt = scene.prompt(0);
//! let picture = scene.draw(128);
//! assert_eq!(picture.pixels().len(), 128 * 128 * 3);
//! assert!(judge(&prompt.claims, &read(&picture)).all_right, "{}", prompt.text);
//! ```

mod attributes;
mod background;
mod caption;
mod cast;
mod claims;
mod dice;
mod draw;
mod judge;
mod kind;
mod lab;
mod layout;
mod palette;
mod phrases;
mod picture;
mod prompts;
mod reader;
mod reading;
mod relation;
mod scene;
mod scenery;
mod shapes;
mod split;

pub use attributes::{Fill, Size};
pub use background::Background;
pub use caption::MAX_WORDS;
pub use claims::{ClaimedObject, ClaimedRelation, Claims, Prompt};
pub use judge::{Verdict, judge};
pub use kind::Kind;
pub use palette::Colour;
pub use picture::{Picture, PictureError};
pub use prompts::test_prompts;
pub use reader::read;
pub use reading::{Reading, Sighting};
pub use relation::Relation;
pub use scene::{Object, Scene};
pub use split::{Split, is_held_out, is_pair_held_out};
