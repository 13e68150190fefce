//! Texts that conversations hold as their special tokens alone.

use crate::common::real_model;
use crate::engine::{alone, drain, gem, question, request};
use lapidary::embed::EmbedOptions;
use lapidary::engine::{Compressed, EmbedRequest, Engine, EngineOptions, place};
use lapidary::generate::reconstruct_ids;
use lapidary::layout::TokenId;
use lapidary::model::{ContentPart, PartedMessage, PromptPart};
use lapidary::{Lapidary, ModelFiles};
use std::sync::{Arc, Mutex};

const LIGHTHOUSE: &str =
    "The lighthouse was built by Anna Holm in 1874. Its keeper, an old sailor, paints the door each winter.";
const TRADE: &str = "The company sells shoes in nine countries and has lost money for three years in a row.";

fn compress(
    gem: &Lapidary,
    engine: &mut Engine<'_>,
    said: &str,
    before: Vec<Arc<Compressed>>,
) -> (Vec<f32>, Arc<Compressed>) {
    let heard = Arc::new(Mutex::new(None));
    let to = Arc::clone(&heard);
    let watch = Box::new(move |found| *to.lock().unwrap() = Some(found));
    let ids = gem.base().tokenizer.encode(said).unwrap();
    let options = EmbedOptions::default();
    engine
        .embed(EmbedRequest {
            ids,
            before,
            options,
            compress: true,
            each_token: false,
            is_gone: Box::new(|| false),
            watch,
        })
        .unwrap();
    drain(engine);
    let embedded = heard.lock().unwrap().take().unwrap().unwrap();
    (embedded.vector, embedded.compressed.unwrap())
}

fn continued(
    engine: &mut Engine<'_>,
    gem: &Lapidary,
    parts: &[(&[TokenId], Option<&Arc<Compressed>>)],
    count: usize,
) -> (Vec<TokenId>, f32) {
    let (mut prompt, mut placed) = (Vec::new(), Vec::new());
    for (ids, compressed) in parts {
        prompt.extend(*ids);
        placed.extend(compressed.map(|compressed| place(&mut prompt, Arc::clone(compressed))));
    }
    let (mut one, heard) = request(gem, prompt, count);
    (one.compressed, one.logprobs) = (placed, Some(1));
    engine.generate(one).unwrap();
    drain(engine);
    let heard = heard.lock().unwrap();
    assert!(heard.failed.is_none(), "{:?}", heard.failed);
    (heard.ids(), heard.tokens[0].logprob.unwrap())
}

/// What comes behind the special tokens is what comes when they are read where they were written: there the keys were never
/// turned.
#[test]
fn a_text_at_another_place_says_what_it_says_at_its_own() {
    let gem = gem();
    for kv_tokens in [4096, 256] {
        let mut engine = Engine::new(&gem, EngineOptions { kv_tokens, ..EngineOptions::default() }).unwrap();
        for said in [LIGHTHOUSE, TRADE] {
            let ids = gem.base().tokenizer.encode(said).unwrap();
            let want = reconstruct_ids(&gem, &ids, Some(24)).unwrap();
            let (vector, compressed) = compress(&gem, &mut engine, said, Vec::new());
            assert_eq!((compressed.num_tokens(), compressed.num_text_tokens()), (want.num_special_tokens, ids.len()));
            assert_eq!((compressed.num_bytes(), compressed.next()), (want.num_kv_bytes, want.ids[0]));
            let rest = continued(&mut engine, &gem, &[(&[], Some(&compressed)), (&[compressed.next()], None)], 23);
            assert_eq!(rest.0, want.ids[1..]);
            let alone = &gem.embed(&[said]).unwrap()[0];
            let cosine: f32 = alone.iter().zip(&vector).map(|(a, b)| a * b).sum();
            assert!((1.0 - cosine).abs() < 1e-5, "{cosine}");
        }
        assert_eq!(engine.load().pages.0, 0);
    }
}

/// Two texts between words of a conversation, asked twice, with so few pages that the conversation begins anew, and in
/// whatever parts the prompt runs.
#[test]
fn texts_stand_between_words_in_any_order() {
    let gem = gem();
    let head =
        question(&gem, "Compare these two texts, which are about quite different things, and say what is in each:");
    let tail = question(&gem, "What is it about?");
    let mut replies = Vec::new();
    for (kv_tokens, batch_tokens) in [(4096, 512), (4096, 7), (256, 16)] {
        let options = EngineOptions { kv_tokens, batch_tokens, ..EngineOptions::default() };
        let mut engine = Engine::new(&gem, options).unwrap();
        let [a, b] = [LIGHTHOUSE, TRADE].map(|said| compress(&gem, &mut engine, said, Vec::new()).1);
        let mut of = |first, second| {
            // Another conversation takes the pages of this one where there are few.
            engine.generate(request(&gem, question(&gem, &"Name three colours. ".repeat(8)), 30).0).unwrap();
            continued(&mut engine, &gem, &[(&head, Some(first)), (&[], Some(second)), (&tail, None)], 16)
        };
        let (one, again, other) = (of(&a, &b), of(&a, &b), of(&b, &a));
        assert_eq!(one, again, "{kv_tokens} {batch_tokens}");
        assert_ne!(one.1, other.1, "the order tells");
        assert_eq!(engine.load().pages.0, 0);
        replies.push((one.0, other.0));
    }
    assert!(replies.windows(2).all(|pair| pair[0] == pair[1]), "{replies:?}");
    let without = alone(&gem, &[head, tail].concat(), 16);
    assert_ne!(replies[0].0, without);
}

/// A page may end within a compressed text: what of it is found is not put there again.
#[test]
fn pages_that_end_within_a_text_are_found() {
    let gem = gem();
    let mut engine = Engine::new(&gem, EngineOptions::default()).unwrap();
    let compressed = compress(&gem, &mut engine, TRADE, Vec::new()).1;
    let (head, tail) = (vec![40; 28], question(&gem, "What is it about?"));
    let parts = [(&head[..], Some(&compressed)), (&tail[..], None)];
    let first = continued(&mut engine, &gem, &parts, 8);
    let (mut prompt, mut placed) = (head.clone(), Vec::new());
    placed.push(place(&mut prompt, Arc::clone(&compressed)));
    prompt.extend(&tail[..8]);
    let (mut one, heard) = request(&gem, prompt, 1);
    one.compressed = placed;
    engine.generate(one).unwrap();
    drain(&mut engine);
    assert_eq!(heard.lock().unwrap().done.unwrap().num_cached_tokens, 32, "a page that ends within the text");
    assert_eq!(continued(&mut engine, &gem, &parts, 8), first);
}

#[test]
fn a_text_is_read_after_what_came_before() {
    let gem = gem();
    let mut engine = Engine::new(&gem, EngineOptions::default()).unwrap();
    let (_, before) = compress(&gem, &mut engine, LIGHTHOUSE, Vec::new());
    let vector = |engine: &mut Engine<'_>, before: &[&Arc<Compressed>]| {
        let before = before.iter().map(|one| Arc::clone(one)).collect();
        compress(&gem, engine, TRADE, before).0
    };
    let (without, with, again) =
        (vector(&mut engine, &[]), vector(&mut engine, &[&before]), vector(&mut engine, &[&before]));
    assert_eq!(with, again);
    let cosine = |other: &[f32]| -> f32 { with.iter().zip(other).map(|(a, b)| a * b).sum() };
    let alone = gem.embed(&[LIGHTHOUSE, TRADE]).unwrap();
    assert!((1.0 - without.iter().zip(&alone[1]).map(|(a, b)| a * b).sum::<f32>()).abs() < 1e-5);
    // It is about both.
    let apart: f32 = alone[0].iter().zip(&alone[1]).map(|(a, b)| a * b).sum();
    let near = [cosine(&alone[0]), cosine(&alone[1])];
    assert!(near.iter().all(|near| (apart + 0.05..0.999).contains(near)), "{near:?}, apart {apart}");
}

#[test]
fn what_stands_for_a_text_cannot_be_written_by_hand() {
    let gem = gem();
    let mut engine = Engine::new(&gem, EngineOptions::default()).unwrap();
    let compressed = compress(&gem, &mut engine, TRADE, Vec::new()).1;
    let mut prompt = vec![40];
    let placed = place(&mut prompt, compressed);
    let refused = |engine: &mut Engine<'_>, prompt: Vec<TokenId>, placed| {
        let (mut one, _) = request(&gem, prompt, 4);
        one.compressed = placed;
        engine.generate(one).unwrap_err().to_string()
    };
    assert!(refused(&mut engine, prompt.clone(), vec![placed.clone()]).contains("a token behind"));
    prompt.push(41);
    assert!(refused(&mut engine, prompt.clone(), Vec::new()).contains("below 49152"));
    assert!(refused(&mut engine, prompt[1..].to_vec(), vec![placed.clone()]).contains("`place`"));
    assert!(refused(&mut engine, prompt, vec![placed.clone(), placed]).contains("`place`"));
}

/// A user cannot write a place, and a template that loses one is told so.
#[test]
fn places_of_a_conversation_come_out_where_they_stood() {
    let gem = gem();
    let said = |text: &str| ContentPart::Text(text.into());
    let content =
        vec![said("First:"), ContentPart::Place(1), said(" then \u{100000}<|im_end|> and "), ContentPart::Place(0)];
    let message = PartedMessage { role: "user".into(), content };
    let parts = gem.base().chat_parts(&[message]).unwrap();
    let places: Vec<usize> = (parts.iter())
        .filter_map(|part| match part {
            PromptPart::Place(number) => Some(*number),
            PromptPart::Ids(_) => None,
        })
        .collect();
    assert_eq!(places, [1, 0]);
    let ids: Vec<TokenId> = (parts.iter())
        .flat_map(|part| match part {
            PromptPart::Ids(ids) => ids.clone(),
            PromptPart::Place(_) => Vec::new(),
        })
        .collect();
    let text = gem.base().tokenizer.decode(&ids, false).unwrap();
    assert!(text.contains("First: then \u{100000}<|im_end|> and <|im_end|>"), "{text}");
    let other = PartedMessage { role: "tool".into(), content: vec![ContentPart::Place(0)] };
    let template = lapidary::text::ChatTemplate::new("{{ messages[0].role }}", None, None);
    let lost = lapidary::model::encode_parts(&template.unwrap(), &gem.base().tokenizer, &[other]);
    assert!(lost.unwrap_err().to_string().contains("expected 1 places in the rendered messages, found 0"));
}

/// Methods that read what they compressed in another row than it was made in: their keys and values alone are not it.
#[test]
fn what_is_read_otherwise_is_not_compressed() {
    for method in ["icae", "llm2vec-gen", "last"] {
        let model = Lapidary::untrained(&ModelFiles::Gguf(real_model()), method, serde_json::Value::Null).unwrap();
        let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
        let ids = model.base().tokenizer.encode(TRADE).unwrap();
        let (before, options, is_gone) = (Vec::new(), EmbedOptions::default(), Box::new(|| false));
        let watch = Box::new(|_| {});
        let refused =
            engine.embed(EmbedRequest { ids, before, options, compress: true, each_token: false, is_gone, watch });
        assert!(refused.unwrap_err().to_string().contains(method), "{method}");
    }
}
