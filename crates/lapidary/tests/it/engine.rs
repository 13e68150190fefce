//! Many requests at once: each gets what it would get alone, and leaves nothing behind.

use crate::common::real_model;
use lapidary::embed::EmbedOptions;
use lapidary::engine::{Done, EmbedRequest, Embedded, Engine, EngineOptions, Event, GenerateRequest, Load, Token};
use lapidary::generate::{Finish, GenerateOptions, Limits, Sampler, Sampling};
use lapidary::model::WeightFormat;
use lapidary::text::Message;
use lapidary::{Error, Lapidary, ModelFiles};
use layout::TokenId;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The model that comes with the program; products of bf16 numbers do not depend on how many rows there are.
pub(crate) fn gem() -> Lapidary {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/smollm2-135m-gem");
    let mut gem = Lapidary::load(&directory, &ModelFiles::Gguf(real_model())).unwrap();
    gem.set_weight_format(WeightFormat::Bf16).unwrap();
    gem
}

#[derive(Default, Debug)]
pub(crate) struct Heard {
    prompt: Vec<Token>,
    pub(crate) tokens: Vec<Token>,
    pub(crate) done: Option<Done>,
    pub(crate) failed: Option<String>,
}

impl Heard {
    pub(crate) fn ids(&self) -> Vec<TokenId> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

pub(crate) fn request(
    gem: &Lapidary,
    prompt: Vec<TokenId>,
    max_new_tokens: usize,
) -> (GenerateRequest, Arc<Mutex<Heard>>) {
    let heard = Arc::new(Mutex::new(Heard::default()));
    let to = Arc::clone(&heard);
    let watch = Box::new(move |event| {
        let mut heard = to.lock().unwrap();
        match event {
            Event::Prompt(token) => heard.prompt.push(token),
            Event::Ran(_) => {}
            Event::Token(token) => heard.tokens.push(token),
            Event::Done(done) => heard.done = Some(done),
            Event::Failed(error) => heard.failed = Some(error.to_string()),
        }
        ControlFlow::Continue(())
    });
    let eos_token_ids = gem.base().generation.eos_token_ids.clone();
    let (sampling, is_gone) = (Sampling::default(), Box::new(|| false));
    let (logprobs, echo) = (None, false);
    let request = GenerateRequest {
        prompt,
        compressed: Vec::new(),
        max_new_tokens,
        eos_token_ids,
        sampling,
        bias: Vec::new(),
        grammar: None,
        logprobs,
        echo,
        is_gone,
        watch,
    };
    (request, heard)
}

pub(crate) type Vector = Arc<Mutex<Option<Result<Vec<f32>, Error>>>>;

pub(crate) fn text(gem: &Lapidary, text: &str) -> (EmbedRequest, Vector) {
    let vector: Vector = Arc::default();
    let to = Arc::clone(&vector);
    let told = move |found: Result<Embedded, Error>| found.map(|embedded| embedded.vector);
    let watch = Box::new(move |found| *to.lock().unwrap() = Some(told(found)));
    let ids = gem.base().tokenizer.encode(text).unwrap();
    let (before, is_gone, options) = (Vec::new(), Box::new(|| false), EmbedOptions::default());
    (EmbedRequest { ids, before, options, compress: false, each_token: false, is_gone, watch }, vector)
}

pub(crate) fn question(gem: &Lapidary, said: &str) -> Vec<TokenId> {
    gem.chat_ids(&[Message { role: "user".into(), content: said.into() }]).unwrap()
}

/// What the model says to a prompt alone.
pub(crate) fn alone(gem: &Lapidary, prompt: &[TokenId], max_new_tokens: usize) -> Vec<TokenId> {
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let generator = gem.generator();
    let mut silent = |_: &str| ControlFlow::Continue(());
    generator.generate(&mut generator.sequence(), prompt, &options, &mut silent).unwrap().ids
}

pub(crate) fn drain(engine: &mut Engine<'_>) -> usize {
    let mut steps = 0;
    while !engine.is_idle() {
        engine.step();
        steps += 1;
        assert!(steps < 5000, "the engine does not come to an end: {:?}", engine.load());
    }
    steps
}

const QUESTIONS: [&str; 6] = [
    "What is the capital of France?",
    "Name three colours.",
    "Write a sentence about the sea.",
    "What is two and two?",
    "Who wrote Hamlet? Answer in one sentence, and say when it was written and where it was first performed, please.",
    "Say hello in Spanish.",
];

/// With room for all, and with so little that conversations have to give way to each other.
#[test]
fn everyone_gets_what_they_would_get_alone() {
    let gem = gem();
    let texts: Vec<String> = (0..24).map(|i| format!("Text number {i} is about {}.", QUESTIONS[i % 6])).collect();
    let vectors = gem.embed(&texts).unwrap();
    for kv_tokens in [4096, 256] {
        let mut engine = Engine::new(&gem, EngineOptions { kv_tokens, batch_tokens: 96, embed_share: 0.5 }).unwrap();
        let mut chats = Vec::new();
        let mut embedded = Vec::new();
        for (i, said) in QUESTIONS.iter().enumerate() {
            let prompt = question(&gem, said);
            let (one, heard) = request(&gem, prompt.clone(), 30);
            engine.generate(one).unwrap();
            chats.push((prompt, heard));
            for described in &texts[i * 4..(i + 1) * 4] {
                let (one, vector) = text(&gem, described);
                engine.embed(one).unwrap();
                embedded.push(vector);
            }
            // They come at different times.
            engine.step();
        }
        drain(&mut engine);
        for (prompt, heard) in chats {
            let heard = heard.lock().unwrap();
            let done = heard.done.unwrap();
            assert_eq!(heard.ids(), alone(&gem, &prompt, 30), "{kv_tokens}: {:?}", heard.failed);
            assert_eq!((done.num_prompt_tokens, done.num_tokens), (prompt.len(), heard.tokens.len()));
            assert_eq!(done.finish == Finish::Length, heard.tokens.len() == 30);
        }
        for (want, found) in vectors.iter().zip(embedded) {
            let found = found.lock().unwrap().take().unwrap().unwrap();
            let cosine: f32 = want.iter().zip(&found).map(|(a, b)| a * b).sum();
            assert!((1.0 - cosine).abs() < 1e-5, "{cosine}");
        }
        let Load { running, waiting, texts, tokens, pages } = engine.load();
        assert_eq!((running, waiting, texts, tokens, pages), (0, 0, 0, 0, (0, kv_tokens / 32)));
    }
}

#[test]
fn a_prompt_that_begins_the_same_is_not_run_again() {
    let gem = gem();
    let mut engine = Engine::new(&gem, EngineOptions::default()).unwrap();
    let prompt = question(&gem, &QUESTIONS.join(" "));
    let mut heard = Vec::new();
    for _ in 0..2 {
        let (one, each) = request(&gem, prompt.clone(), 8);
        engine.generate(one).unwrap();
        drain(&mut engine);
        heard.push(each);
    }
    let [first, second] = [0, 1].map(|i| heard[i].lock().unwrap().ids());
    assert_eq!(first, second);
    let cached = [0, 1].map(|i| heard[i].lock().unwrap().done.unwrap().num_cached_tokens);
    assert_eq!(cached, [0, (prompt.len() - 1) / 32 * 32]);
}

#[test]
fn who_leaves_leaves_nothing() {
    let gem = gem();
    let mut engine = Engine::new(&gem, EngineOptions::default()).unwrap();
    let (mut one, _) = request(&gem, question(&gem, QUESTIONS[2]), 100);
    let mut left = 3;
    one.watch = Box::new(move |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    engine.generate(one).unwrap();
    let steps = drain(&mut engine);
    assert!(steps <= 4 && engine.load() == Load { pages: (0, 512), ..Load::default() }, "{:?}", engine.load());
    // Who goes away before anything has run.
    for gone in [true, false] {
        let (mut one, _) = request(&gem, question(&gem, QUESTIONS[2]), 100);
        let (mut other, vector) = text(&gem, "A text.");
        (one.is_gone, other.is_gone) = (Box::new(move || gone), Box::new(move || gone));
        (one.max_new_tokens, one.watch) = (1, Box::new(move |_| ControlFlow::Continue(())));
        engine.generate(one).unwrap();
        engine.embed(other).unwrap();
        assert_eq!(engine.step() == 0, gone);
        drain(&mut engine);
        assert_eq!(vector.lock().unwrap().is_none(), gone);
    }
    // The engine ends while somebody waits.
    let (one, heard) = request(&gem, question(&gem, QUESTIONS[2]), 100);
    let (other, vector) = text(&gem, "A text.");
    engine.generate(one).unwrap();
    engine.embed(other).unwrap();
    drop(engine);
    assert_eq!(heard.lock().unwrap().done.unwrap().finish, Finish::Interrupted);
    assert!(vector.lock().unwrap().take().unwrap().is_err());
}

/// Probabilities of a prompt that runs in parts, against the losses that evaluation takes.
#[test]
fn a_prompts_probabilities_are_those_of_evaluation() {
    let gem = gem();
    let mut engine = Engine::new(&gem, EngineOptions { batch_tokens: 20, ..EngineOptions::default() }).unwrap();
    let prompt = question(&gem, QUESTIONS[4]);
    for logprobs in [Some(2), None] {
        let (mut one, heard) = request(&gem, prompt.clone(), 1);
        (one.echo, one.logprobs) = (true, logprobs);
        engine.generate(one).unwrap();
        drain(&mut engine);
        let heard = heard.lock().unwrap();
        assert_eq!(heard.prompt.iter().map(|token| token.id).collect::<Vec<_>>(), prompt);
        assert_eq!((heard.prompt[0].logprob, heard.tokens.len()), (None, 1));
        if logprobs.is_none() {
            continue;
        }
        let decoder = &gem.base().decoder;
        let segment = lapidary::model::Segment::plain_rows([&prompt[..]]);
        let hidden = decoder.forward(&segment, lapidary::model::Kv::None, Default::default()).unwrap();
        let hidden = hidden.narrow(0, 0, prompt.len() - 1).unwrap();
        let want: Vec<f32> = decoder.cross_entropy(&hidden, &prompt[1..]).unwrap().to_vec1().unwrap();
        for (token, want) in heard.prompt[1..].iter().zip(want) {
            assert!((token.logprob.unwrap() + want).abs() < 2e-4, "{token:?} {want}");
            assert!(token.top.len() == 2 && token.top[0].1 >= token.top[1].1);
        }
        let chosen = &heard.tokens[0];
        assert_eq!(chosen.logprob, Some(chosen.top[0].1), "the greedy token is the most probable, to the last bit");
    }
}

/// Whoever floods the engine, the other goes on: a long text beside replies and beside a flood of prompts, a prompt beside a
/// flood of texts, with few pages.
#[test]
fn a_flood_of_one_does_not_starve_the_other() {
    let gem = gem();
    let options = EngineOptions { kv_tokens: 1024, batch_tokens: 64, embed_share: 0.5 };
    let long_text = "A long text is about the sea and the wind. ".repeat(12);
    // Replies and prompts without end.
    let mut engine = Engine::new(&gem, options).unwrap();
    let (one, vector) = text(&gem, &long_text);
    for _ in 0..10 {
        engine.generate(request(&gem, question(&gem, &QUESTIONS.join(" ")), 40).0).unwrap();
        engine.step();
    }
    engine.embed(one).unwrap();
    let mut steps = 0;
    while vector.lock().unwrap().is_none() {
        engine.generate(request(&gem, question(&gem, &QUESTIONS.join(" ")), 40).0).unwrap();
        engine.step();
        steps += 1;
        assert!(steps < 300, "the text waits for ever: {:?}", engine.load());
    }
    drop(engine);
    // Texts without end.
    let mut engine = Engine::new(&gem, options).unwrap();
    let (one, heard) = request(&gem, question(&gem, &QUESTIONS.join(" ")), 5);
    let mut one = Some(one);
    let mut steps = 0;
    while heard.lock().unwrap().done.is_none() {
        for _ in 0..40 {
            engine.embed(text(&gem, "Short.").0).unwrap();
        }
        if steps == 3 {
            engine.generate(one.take().unwrap()).unwrap();
        }
        engine.step();
        steps += 1;
        assert!(steps < 100, "the prompt waits for ever: {:?}", engine.load());
    }
}

/// A text that takes nearly all pages, beside conversations that never end to come.
#[test]
fn a_text_as_long_as_the_pool_runs_beside_conversations() {
    let gem = gem();
    let options = EngineOptions { kv_tokens: 512, batch_tokens: 128, embed_share: 0.5 };
    let mut engine = Engine::new(&gem, options).unwrap();
    let (one, vector) = text(&gem, &"A long text is about the sea and the wind. ".repeat(21));
    let chat = || request(&gem, question(&gem, QUESTIONS[1]), 12).0;
    engine.generate(chat()).unwrap();
    engine.step();
    engine.embed(one).unwrap();
    let mut steps = 0;
    while vector.lock().unwrap().is_none() {
        if steps % 4 == 0 {
            engine.generate(chat()).unwrap();
        }
        engine.step();
        steps += 1;
        assert!(steps < 300, "the text waits for ever: {:?}", engine.load());
    }
    assert!(steps > 1 && vector.lock().unwrap().take().unwrap().is_ok());
    drain(&mut engine);
}

#[test]
fn draws_depend_on_their_seed_alone() {
    let gem = gem();
    let sampling = Sampling { temperature: 1.0, seed: Some(7), ..Sampling::default() };
    let prompt = question(&gem, QUESTIONS[2]);
    let run = |others: usize| {
        let mut engine = Engine::new(&gem, EngineOptions::default()).unwrap();
        for said in &QUESTIONS[..others] {
            engine.generate(request(&gem, question(&gem, said), 12).0).unwrap();
        }
        let (mut one, heard) = request(&gem, prompt.clone(), 12);
        one.sampling = sampling;
        engine.generate(one).unwrap();
        drain(&mut engine);
        heard.lock().unwrap().ids()
    };
    let mut sequence = gem.generator().sequence();
    let limits = Limits { max_new_tokens: 12, eos_token_ids: &gem.base().generation.eos_token_ids };
    let mut want = Vec::new();
    let mut sampler = Sampler::new(sampling).unwrap();
    sequence
        .generate(&prompt, &limits, &mut sampler, &mut |progress| {
            if let lapidary::generate::Progress::Token(id) = progress {
                want.push(id);
            }
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert_eq!((run(0), run(5)), (want.clone(), want));
}

#[test]
fn states_of_tokens_are_those_that_a_mean_is_taken_of() {
    let mean = Lapidary::from_base(gem().into_base(), "mean", serde_json::json!({})).unwrap();
    let (whole, vector) = text(&mean, "A man plays a guitar.");
    let (each, states) = text(&mean, "A man plays a guitar.");
    let num_tokens = each.ids.len();
    let mut engine = Engine::new(&mean, EngineOptions::default()).unwrap();
    engine
        .embed(EmbedRequest { options: EmbedOptions { normalise: false, ..EmbedOptions::default() }, ..whole })
        .unwrap();
    engine.embed(EmbedRequest { each_token: true, ..each }).unwrap();
    drain(&mut engine);
    let vector = vector.lock().unwrap().take().unwrap().unwrap();
    let states = states.lock().unwrap().take().unwrap().unwrap();
    assert_eq!(states.len(), num_tokens * vector.len());
    for (at, x) in vector.iter().enumerate() {
        let mean = states.iter().skip(at).step_by(vector.len()).sum::<f32>() / num_tokens as f32;
        assert!((mean - x).abs() < 1e-4 * x.abs().max(1.0), "{at}: {mean} {x}");
    }
}

#[test]
fn what_cannot_run_is_refused() {
    let gem = gem();
    let mut engine = Engine::new(&gem, EngineOptions { kv_tokens: 128, ..EngineOptions::default() }).unwrap();
    let refused = |engine: &mut Engine<'_>, prompt: Vec<TokenId>| {
        engine.generate(request(&gem, prompt, 8).0).unwrap_err().to_string()
    };
    assert!(refused(&mut engine, Vec::new()).contains("at least one token"));
    assert!(refused(&mut engine, vec![1, 99_999]).contains("below 49152"));
    assert!(refused(&mut engine, vec![1; 129]).contains("128"));
    let mut embed = |ids: Vec<TokenId>| {
        let (mut one, _) = text(&gem, "A text.");
        one.ids = ids;
        engine.embed(one).unwrap_err().to_string()
    };
    assert!(embed(Vec::new()).contains("at least one token"));
    assert!(embed(vec![49_152]).contains("below 49152"));
    assert!(embed(vec![1; 200]).contains("128"));
    assert!(engine.is_idle());
    for options in [
        EngineOptions { kv_tokens: 32, ..EngineOptions::default() },
        EngineOptions { batch_tokens: 0, ..EngineOptions::default() },
        EngineOptions { embed_share: f32::NAN, ..EngineOptions::default() },
    ] {
        assert!(Engine::new(&gem, options).is_err(), "{options:?}");
    }
    // What fits exactly runs to the end of the room.
    let (one, heard) = request(&gem, vec![1; 120], 100);
    engine.generate(one).unwrap();
    drain(&mut engine);
    let heard = heard.lock().unwrap();
    let done = heard.done.unwrap();
    assert!(done.finish == Finish::Stop || (done.finish == Finish::Context && done.num_tokens == 9), "{done:?}");
}
