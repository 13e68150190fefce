//! The stream of training rows: which rows it gives, and that it goes on where it stood.

use lapidary::train::{Position, RowStream};
use std::collections::BTreeSet;

use crate::training::{TEXTS, Workshop};

#[test]
fn texts_cut_at_random_have_every_length_and_come_again_after_a_resume() {
    let shop = Workshop::new(&TEXTS);
    let (recipe, base) = (shop.recipe(&["budget.cut=random", "budget.min_tokens=2"]), shop.base());
    let open = |position| RowStream::open(&recipe.data, &base.tokenizer, &recipe.budget, 0, position).unwrap();
    let mut stream = open(Position::default());
    let mut read = |count: usize| (0..count).map(|_| stream.next_example().unwrap().0.text).collect::<Vec<_>>();
    let (before, after) = (read(3 * TEXTS.len() + 3), read(40));
    let mut resumed = open(Position { epoch: 3, draws: 3, ..Position::default() });
    assert!(after.iter().all(|text| *text == resumed.next_example().unwrap().0.text));
    for text in TEXTS {
        let whole = base.tokenizer.encode(text).unwrap();
        let begins = |text: &&Vec<u32>| whole.starts_with(text);
        let lengths: BTreeSet<usize> = before.iter().chain(&after).filter(begins).map(Vec::len).collect();
        assert!(lengths.len() > 2 && lengths.iter().all(|length| (2..=whole.len()).contains(length)), "{lengths:?}");
    }
}
