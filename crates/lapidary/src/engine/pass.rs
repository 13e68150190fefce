//! One pass: its rows run, and each request is told what came of it.

use super::request::Text;
use super::{Compressed, Embedded, Engine, Part};
use crate::Error;
use crate::generate::greedy;
use crate::model::{ForwardOptions, Kv, KvRow, PoolPass, Segment};
use kernels::{Tensor, ops};
use std::ops::ControlFlow;
use std::sync::Arc;

impl Engine<'_> {
    /// Hidden states of all parts, end to end.
    pub(super) fn run(&mut self, parts: &[Part], rows: &mut [KvRow]) -> Result<Tensor, Error> {
        let mut segment = Segment::default();
        for (number, (part, row)) in parts.iter().zip(&*rows).enumerate() {
            segment.push(
                number,
                match part {
                    Part::Text(text) => Segment::whole([&text.layout]).behind(text.num_before() as u32),
                    Part::Chat(at, count) => {
                        let done = row.num_tokens();
                        let next = Segment::next_of_rows([(&self.running[*at].ids[done..done + count], done as u32)]);
                        if self.model.plain_adapter().is_some() { next.adapt_all() } else { next }
                    }
                },
            );
        }
        // Attention in f32: it does not depend on how a prompt is cut into parts.
        let options = ForwardOptions { adapter: self.model.adapter(), ..ForwardOptions::default() };
        let pass = PoolPass { pool: &mut self.pool, rows };
        self.model.base().decoder.forward(&segment, Kv::Pool(pass), options)
    }

    pub(super) fn tell(&mut self, parts: Vec<Part>, rows: Vec<KvRow>, hidden: &Tensor) {
        let mut first = 0;
        let (mut lasts, mut gone) = (Vec::new(), Vec::new());
        for (part, row) in parts.into_iter().zip(rows) {
            match part {
                Part::Text(text) => {
                    let len = text.layout.num_tokens();
                    let embedded = self.embedded(hidden, first, &text, &row);
                    self.pool.release(row);
                    text.end(embedded);
                    first += len;
                }
                Part::Chat(at, count) => {
                    let chat = &mut self.running[at];
                    chat.row = row;
                    self.pool.share(&mut chat.row, &chat.ids);
                    let told = chat.tell_prompt(&self.model.base().decoder, hidden, first..first + count);
                    match told {
                        Ok(ControlFlow::Continue(())) if chat.num_left() == 0 => lasts.push((at, first + count - 1)),
                        Ok(ControlFlow::Continue(())) => {}
                        Ok(ControlFlow::Break(())) => gone.push(at),
                        Err(error) => {
                            chat.fail(&error);
                            gone.push(at);
                        }
                    }
                    first += count;
                }
            }
        }
        match self.logits(hidden, &lasts) {
            Ok(logits) => {
                for ((at, _), logits) in lasts.iter().zip(&logits) {
                    if self.running[*at].next(logits).is_break() {
                        gone.push(*at);
                    }
                }
            }
            Err(error) => {
                for (at, _) in &lasts {
                    self.running[*at].fail(&error);
                    gone.push(*at);
                }
            }
        }
        self.end(gone);
    }

    /// Conversations that are over give back what they hold.
    pub(super) fn end(&mut self, mut gone: Vec<usize>) {
        gone.sort_unstable();
        for at in gone.into_iter().rev() {
            let mut chat = self.running.remove(at);
            self.release(&mut chat);
        }
    }

    pub(super) fn fail(&mut self, parts: Vec<Part>, rows: Vec<KvRow>, error: &Error) {
        // What a pass left half done is not found again.
        rows.into_iter().for_each(|row| self.pool.release(row));
        let mut gone = Vec::new();
        for part in parts {
            match part {
                Part::Text(text) => text.end(Err(Error::Internal(error.to_string()))),
                Part::Chat(at, _) => {
                    self.running[at].fail(error);
                    gone.push(at);
                }
            }
        }
        self.end(gone);
    }

    /// Logits of some positions of the pass.
    fn logits(&self, hidden: &Tensor, places: &[(usize, usize)]) -> Result<Vec<Vec<f32>>, Error> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let rows = places.iter().map(|(_, place)| vec![(*place as u32, 1.0)]).collect();
        Ok(self.model.base().decoder.logits(&ops::pool(hidden, rows)?)?.to_vec2()?)
    }

    fn embedded(&self, hidden: &Tensor, first: usize, text: &Text, row: &KvRow) -> Result<Embedded, Error> {
        if let Some(tokens) = &text.tokens {
            let rows = tokens.iter().map(|at| vec![(at + first as u32, 1.0)]).collect();
            let vector: Vec<f32> = ops::pool(hidden, rows)?.flatten_all()?.to_vec1()?;
            if !vector.iter().all(|x| x.is_finite()) {
                return Err(Error::NotFinite("the state of a token is not finite".into()));
            }
            return Ok(Embedded { vector, compressed: None });
        }
        let weights = text.layout.pooled().first().map_or(&[][..], |pooled| &pooled.weights);
        let places = weights.iter().map(|(at, weight)| (at + first as u32, *weight)).collect();
        let mut vector: Vec<f32> = ops::pool(hidden, vec![places])?.flatten_all()?.to_vec1()?;
        self.model.embedder().finish(&mut vector, &text.options)?;
        let compressed = if text.compress { Some(Arc::new(self.compressed(hidden, first, text, row)?)) } else { None };
        Ok(Embedded { vector, compressed })
    }

    fn compressed(&self, hidden: &Tensor, first: usize, text: &Text, row: &KvRow) -> Result<Compressed, Error> {
        let (end, before) = (text.layout.num_tokens(), text.num_before() as u32);
        let start = end - text.num_special_tokens();
        let logits = self.logits(hidden, &[(0, first + end - 1)])?;
        let next = greedy(&logits[0]).ok_or_else(|| Error::Internal("no logits behind a text".into()))?;
        let positions: Vec<u32> = text.layout.positions()[start..].iter().map(|position| position + before).collect();
        let decoder = &self.model.base().decoder;
        self.pool.take((row, start as u32 + before), decoder, &positions, (text.num_text_tokens, next))
    }
}

#[cfg(test)]
mod tests {
    use crate::embed::EmbedOptions;
    use crate::engine::{EmbedRequest, Engine, EngineOptions, Event, GenerateRequest, Load};
    use crate::generate::Sampling;
    use crate::{Error, Lapidary, ModelFiles};
    use std::ops::ControlFlow;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    /// A tiny model with a tokenizer of two words.
    fn model() -> Lapidary {
        let (dir, golden) = (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"));
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden.join("families/llama").join(file), dir.path().join(file)).unwrap();
        }
        let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"#;
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer).unwrap();
        let base = ModelFiles::Directory(dir.path().to_owned());
        Lapidary::untrained(&base, "last", serde_json::Value::Null).unwrap()
    }

    #[test]
    fn a_pass_that_fails_is_told_to_its_requests_alone() {
        let model = model();
        let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let chat = |max_new_tokens| {
            let to = Arc::clone(&heard);
            let watch = Box::new(move |event| {
                let said = match event {
                    Event::Failed(error) => format!("chat: {error}"),
                    Event::Done(done) => format!("chat: {} tokens", done.num_tokens),
                    Event::Prompt(_) | Event::Ran(_) | Event::Token(_) => return ControlFlow::Continue(()),
                };
                to.lock().unwrap().push(said);
                ControlFlow::Continue(())
            });
            GenerateRequest {
                prompt: vec![0, 1, 0],
                compressed: Vec::new(),
                max_new_tokens,
                eos_token_ids: Vec::new(),
                sampling: Sampling::default(),
                bias: Vec::new(),
                grammar: None,
                logprobs: None,
                echo: false,
                is_gone: Box::new(|| false),
                watch,
            }
        };
        let text = || {
            let to = Arc::clone(&heard);
            EmbedRequest {
                ids: vec![0, 1],
                before: Vec::new(),
                options: EmbedOptions::default(),
                compress: false,
                each_token: false,
                is_gone: Box::new(|| false),
                watch: Box::new(move |found| {
                    to.lock().unwrap().push(found.map_or_else(|e| format!("text: {e}"), |_| "text".into()));
                }),
            }
        };
        engine.generate(chat(3)).unwrap();
        engine.embed(text()).unwrap();
        engine.admit();
        let (parts, rows) = engine.parts();
        assert_eq!(parts.len(), 2);
        // Those that come later are not of this pass.
        engine.generate(chat(2)).unwrap();
        engine.embed(text()).unwrap();
        engine.fail(parts, rows, &Error::Internal("no memory".into()));
        let mut failed = std::mem::take(&mut *heard.lock().unwrap());
        failed.sort();
        assert!(failed.len() == 2 && failed.iter().all(|said| said.contains("no memory")), "{failed:?}");
        while !engine.is_idle() {
            engine.step();
        }
        assert_eq!(engine.load(), Load { pages: (0, 512), ..Load::default() });
        let mut done = heard.lock().unwrap().clone();
        done.sort();
        assert_eq!(done, ["chat: 2 tokens", "text"]);
    }
}
