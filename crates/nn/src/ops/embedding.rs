//! Rows of a table, one for each id.

use std::fmt;

use candle_core::{Result, Tensor};

use crate::NamedWeights;
use crate::named_weights::ReadRows;

/// A table with a row for each token of a vocabulary. A text has a few hundred of tens of thousands, so that a table that is on disk stays
/// there, and only rows that are asked for are read.
#[derive(Clone)]
pub struct Embedding(Rows);

#[derive(Clone)]
enum Rows {
    Held(Tensor),
    Stored(ReadRows),
}

impl Embedding {
    /// Reads `weight` `[rows, width]`, or finds out where it is.
    pub fn new(rows: usize, width: usize, vb: NamedWeights) -> Result<Self> {
        Ok(Self(match vb.rows((rows, width), "weight")? {
            Some(read) => Rows::Stored(read),
            None => Rows::Held(vb.get((rows, width), "weight")?),
        }))
    }

    /// The rows `ids` `[n]` (u32): `[n, width]`. Errors: an id beyond the last row; a file that cannot be read.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Rows::Held(table) => table.index_select(ids, 0),
            Rows::Stored(read) => read(&ids.to_vec1()?),
        }
    }
}

impl fmt::Debug for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rows::Held(table) => f.debug_tuple("Embedding").field(table).finish(),
            Rows::Stored(_) => f.write_str("Embedding(stored)"),
        }
    }
}
