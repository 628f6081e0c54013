//! How large and how deep the objects of a pickle would get, found out before any of them is made.
//!
//! A few hundred bytes of pickle can ask for billions of objects, by doubling what was made before, or for objects nested
//! so deep that freeing them overflows the stack. No state dict does; such files are refused.

use std::collections::HashMap;

/// Deepest nesting: a state dict in a checkpoint's dictionary needs about ten.
const MAX_DEPTH: u32 = 100;
/// Most objects, copies included: a state dict has about thirty for each tensor.
const MAX_OBJECTS: u64 = 10_000_000;

/// An object yet to be made.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    depth: u32,
    objects: u64,
}

const LEAF: Bounds = Bounds { depth: 1, objects: 1 };

impl Bounds {
    fn holding(self, others: &[Bounds]) -> Self {
        others.iter().fold(self, |all, other| Bounds {
            depth: all.depth.max(other.depth.saturating_add(1)),
            objects: all.objects.saturating_add(other.objects),
        })
    }
}

/// Whether the pickle stays within bounds. One that is broken otherwise does, as far as it can be read: the reader that
/// comes after says what is wrong.
pub(crate) fn is_bounded(bytes: &[u8]) -> bool {
    Walk::default().run(bytes) != Some(Verdict::Unbounded)
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Done,
    Unbounded,
}

#[derive(Default)]
struct Walk {
    stack: Vec<Bounds>,
    /// Heights of the stack at the marks in it.
    marks: Vec<usize>,
    memo: HashMap<u32, Bounds>,
    objects: u64,
}

impl Walk {
    /// `None` where the bytes end early or are no pickle.
    fn run(&mut self, mut bytes: &[u8]) -> Option<Verdict> {
        loop {
            let (opcode, rest) = bytes.split_first()?;
            bytes = rest;
            match opcode {
                0x80 => skip(&mut bytes, 1)?,
                b'(' => self.marks.push(self.stack.len()),
                b')' | b'}' | b']' | b'N' | 0x88 | 0x89 => self.push(LEAF),
                b'K' => self.leaf(&mut bytes, 1)?,
                b'M' => self.leaf(&mut bytes, 2)?,
                b'J' => self.leaf(&mut bytes, 4)?,
                b'G' => self.leaf(&mut bytes, 8)?,
                b'X' => {
                    let len = number(&mut bytes, 4)?;
                    self.leaf(&mut bytes, len as usize)?;
                }
                0x8a => {
                    let len = number(&mut bytes, 1)?;
                    self.leaf(&mut bytes, len as usize)?;
                }
                b'c' => {
                    for _ in 0..2 {
                        let end = bytes.iter().position(|byte| *byte == b'\n')?;
                        skip(&mut bytes, end + 1)?;
                    }
                    self.push(LEAF);
                }
                b'q' | b'r' => {
                    let id = number(&mut bytes, if *opcode == b'q' { 1 } else { 4 })?;
                    self.memo.insert(id, *self.stack.last()?);
                }
                b'h' | b'j' => {
                    let id = number(&mut bytes, if *opcode == b'h' { 1 } else { 4 })?;
                    self.push(*self.memo.get(&id)?);
                }
                b'Q' | 0x85 => self.gather(1)?,
                0x86 | b'R' | 0x81 | b'b' => self.gather(2)?,
                0x87 => self.gather(3)?,
                b't' | b'd' => {
                    let mark = self.marks.pop()?;
                    self.gather(self.stack.len().checked_sub(mark)?)?;
                }
                b'a' => self.put_into_last(1)?,
                b's' => self.put_into_last(2)?,
                b'u' | b'e' => {
                    let mark = self.marks.pop()?;
                    self.put_into_last(self.stack.len().checked_sub(mark)?)?;
                }
                b'.' => return Some(Verdict::Done),
                _ => return None,
            }
            let deepest = self.stack.last().map_or(0, |last| last.depth);
            if deepest > MAX_DEPTH || self.objects > MAX_OBJECTS {
                return Some(Verdict::Unbounded);
            }
        }
    }

    fn push(&mut self, object: Bounds) {
        self.objects = self.objects.saturating_add(object.objects);
        self.stack.push(object);
    }

    /// An object of its own with `len` bytes of data.
    fn leaf(&mut self, bytes: &mut &[u8], len: usize) -> Option<()> {
        skip(bytes, len)?;
        self.push(LEAF);
        Some(())
    }

    /// The last `count` objects become one that holds them.
    fn gather(&mut self, count: usize) -> Option<()> {
        let parts = self.stack.split_off(self.stack.len().checked_sub(count)?);
        self.stack.push(LEAF.holding(&parts));
        self.objects = self.objects.saturating_add(1);
        Some(())
    }

    /// The last `count` objects are put into the one before them.
    fn put_into_last(&mut self, count: usize) -> Option<()> {
        let parts = self.stack.split_off(self.stack.len().checked_sub(count)?);
        let last = self.stack.last_mut()?;
        *last = last.holding(&parts);
        Some(())
    }
}

fn skip(bytes: &mut &[u8], count: usize) -> Option<()> {
    *bytes = bytes.get(count..)?;
    Some(())
}

/// A little-endian number of `size` bytes.
fn number(bytes: &mut &[u8], size: usize) -> Option<u32> {
    let (digits, rest) = bytes.split_at_checked(size)?;
    *bytes = rest;
    Some(digits.iter().rev().fold(0, |value, digit| value << 8 | u32::from(*digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bombs_are_seen_and_state_dicts_pass() {
        // ((((…)))): a tuple of one, a million times.
        let deep: Vec<u8> = [b"\x80\x02)".to_vec(), vec![0x85; 1_000_000], b".".to_vec()].concat();
        assert!(!is_bounded(&deep));
        // x = (x, x), forty times: 2⁴⁰ objects in 240 bytes.
        let doubled: Vec<u8> = [b"\x80\x02)q\x00".to_vec(), b"h\x00h\x00\x86q\x00".repeat(40), b".".to_vec()].concat();
        assert!(!is_bounded(&doubled));
        // {"weight": (1, 2)} and lists within lists, of some levels.
        assert!(is_bounded(b"\x80\x02}q\x00(X\x06\x00\x00\x00weightK\x01K\x02\x86u."));
        assert!(is_bounded(&[b"\x80\x02)".to_vec(), vec![0x85; 50], b".".to_vec()].concat()));
        // What cannot be read is left to the reader.
        assert!(is_bounded(b"\x80\x02\xff") && is_bounded(b"") && is_bounded(b"\x86"));
    }
}
