//! A row as decoding wants it: guided, its tokens penalised, biased, and some of them forbidden.

use cubecl::prelude::*;

use super::layout::{
    ALLOWED, ALLOWED_WORDS, EDIT_ADD, EDIT_COUNT, EDIT_REPETITION, EDITS, OTHER, RECIPROCAL,
    REPETITION, ROW, SCALE,
};
use super::values::{BAD, LEAST, MINUS_INFINITY, NONE, is_finite, key_of, value_of};

/// A word of a row's header as a float.
#[cube]
pub(super) fn float(asked: &[u32], at: u32) -> f32 {
    f32::reinterpret(asked[at as usize])
}

/// Where a row's logits are.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Source {
    first: usize,
    other: usize,
    is_guided: bool,
    scale: f32,
}

/// Where the logits of a row are.
#[cube]
pub(super) fn source_of(asked: &[u32], header: u32, vocab: u32) -> Source {
    let row = asked[(header + ROW) as usize] as usize;
    let other = asked[(header + OTHER) as usize];
    Source {
        first: row * vocab as usize,
        other: other as usize * vocab as usize,
        is_guided: other != NONE,
        scale: float(asked, header + SCALE),
    }
}

/// The key of a token in the row as the model gave it, guidance included.
#[cube]
pub(super) fn raw_key<F: Float>(logits: &[F], source: Source, id: u32) -> u32 {
    let mut key = key_of(f32::cast_from(logits[source.first + id as usize]));
    if source.is_guided {
        let other = key_of(f32::cast_from(logits[source.other + id as usize]));
        key = guided(key, other, source.scale);
    }
    key
}

/// `u + scale (c - u)`; the difference from `-inf` is no number.
#[cube]
fn guided(own: u32, other: u32, scale: f32) -> u32 {
    let mut key = own;
    if is_finite(own) && is_finite(other) {
        let (c, u) = (value_of(own), value_of(other));
        key = key_of(u + scale * (c - u));
    } else if own == BAD || !is_finite(other) {
        key = BAD.runtime();
    }
    key
}

/// The id of an edit.
#[cube]
fn edit_id(asked: &[u32], edits: u32, at: u32) -> u32 {
    asked[(edits + 2 * at) as usize] >> 2u32
}

/// The first of a row's edits whose id is at least this.
#[cube]
fn first_edit(asked: &[u32], header: u32, id: u32) -> u32 {
    let edits = asked[(header + EDITS) as usize];
    let mut low = 0u32.runtime();
    let mut high = asked[(header + EDIT_COUNT) as usize];
    while low < high {
        let middle = (low + high) / 2;
        if edit_id(asked, edits, middle) < id {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// A key after one edit.
#[cube]
fn edited(key: u32, asked: &[u32], header: u32, at: usize) -> u32 {
    let mut result = key;
    let kind = asked[at] & 3u32;
    let bits = asked[at + 1];
    if bits == MINUS_INFINITY {
        result = LEAST.runtime();
    } else if is_finite(key) {
        let value = value_of(key);
        let change = f32::reinterpret(bits);
        let mut factor = float(asked, header + REPETITION);
        if value > 0.0f32 {
            factor = float(asked, header + RECIPROCAL);
        }
        let mut changed = value - change;
        if kind == EDIT_REPETITION {
            changed = value * factor;
        }
        if kind == EDIT_ADD {
            changed = value + change;
        }
        result = key_of(changed);
    }
    result
}

/// A key after the edits of its token, of which `first` is the first.
#[cube]
fn edited_by_all(key: u32, asked: &[u32], header: u32, first: u32, id: u32) -> u32 {
    let edits = asked[(header + EDITS) as usize];
    let count = asked[(header + EDIT_COUNT) as usize];
    let mut result = key;
    let mut at = first;
    while at < count && edit_id(asked, edits, at) == id {
        result = edited(result, asked, header, (edits + 2 * at) as usize);
        at += 1;
    }
    result
}

/// A key, or that of `-inf` if the row's set does not hold the token.
#[cube]
fn unless_forbidden(key: u32, asked: &[u32], header: u32, id: u32) -> u32 {
    let set = asked[(header + ALLOWED) as usize];
    let mut result = key;
    if set != NONE {
        let at = id / 32;
        let mut word = 0u32.runtime();
        if at < asked[(header + ALLOWED_WORDS) as usize] {
            word = asked[(set + at) as usize];
        }
        if (word >> (id % 32)) & 1u32 == 0u32 {
            result = LEAST.runtime();
        }
    }
    result
}

/// The key of one token after all edits.
#[cube]
pub(super) fn adjusted_key<F: Float>(
    logits: &[F],
    asked: &[u32],
    header: u32,
    source: Source,
    id: u32,
) -> u32 {
    let raw = raw_key::<F>(logits, source, id);
    let first = first_edit(asked, header, id);
    unless_forbidden(edited_by_all(raw, asked, header, first, id), asked, header, id)
}

/// Edits a tile of keys that begins at token `first`; all units have to come here.
#[cube]
pub(super) fn adjust_tile(
    asked: &[u32],
    header: u32,
    tile: &mut Shared<[u32]>,
    first: u32,
    vocab: u32,
    #[comptime] shape: (u32, u32),
) {
    let (units, len) = comptime!(shape);
    let edits = asked[(header + EDITS) as usize];
    let count = asked[(header + EDIT_COUNT) as usize];
    let start = first_edit(asked, header, first);
    let mut at = start + UNIT_POS;
    while at < count {
        let id = edit_id(asked, edits, at);
        let mut is_first = true.runtime();
        if at > start {
            is_first = edit_id(asked, edits, at - 1) != id;
        }
        if is_first && id < first + len {
            let place = (id - first) as usize;
            tile[place] = edited_by_all(tile[place], asked, header, at, id);
        }
        at += units;
    }
    sync_cube();
    if asked[(header + ALLOWED) as usize] != NONE {
        let mut at = UNIT_POS;
        while at < len {
            if first + at < vocab {
                tile[at as usize] = unless_forbidden(tile[at as usize], asked, header, first + at);
            }
            at += units;
        }
    }
    sync_cube();
}
