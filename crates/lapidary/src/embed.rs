//! Texts to vectors: encode, lay out, pack without padding, run, pool, standardise, normalise.

use crate::Error;
use crate::eval::standardise::{Moments, Standardisation};
use crate::model::{AdapterView, Decoder, ForwardOptions, Kv, Segment};
use crate::text::Tokenizer;
use crate::text::tokenizer::MAX_TEXT_BYTES;
use kernels::ops::{self, MANY_KEYS};
use kernels::{Fetch, Tensor};
use layout::{Layout, Method, TokenId, pack};

/// What happens to pooled vectors, and how many tokens run at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbedOptions {
    /// Longer texts are cut to this many tokens, and counted; 0: the model's limit.
    pub max_tokens: usize,
    /// Tokens of one forward pass, at most; 0: 2,048, on a GPU 32,768.
    pub batch_tokens: usize,
    /// Apply the stored standardisation, if there is one.
    pub standardise: bool,
    /// Scale to unit length.
    pub normalise: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { max_tokens: 0, batch_tokens: 0, standardise: true, normalise: true }
    }
}

/// Vectors and what it took to make them.
#[derive(Debug, Clone, Default)]
pub struct Embeddings {
    /// One vector per text, in the order of the texts, `[D]` each.
    pub vectors: Vec<Vec<f32>>,
    /// Texts that were cut.
    pub num_truncated: usize,
    /// Positions of all rows, templates and special tokens included; some that rows begin with alike ran once.
    pub num_tokens: usize,
}

/// As much of a text as `limit` tokens can need: encoding a huge text whole would cost time for tokens that are cut.
fn head(text: &str, limit: usize) -> &str {
    // Tokens of more bytes are runs of blanks or of one sign.
    const TOKEN_BYTES: usize = 64;
    let mut end = text.len().min(limit.saturating_mul(TOKEN_BYTES)).min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A model, a method, and what was trained for it.
#[derive(Clone, Copy)]
pub struct Embedder<'a> {
    /// Runs the rows; outside any graph.
    pub decoder: &'a Decoder,
    /// Text to ids.
    pub tokenizer: &'a Tokenizer,
    /// Ids to rows.
    pub method: &'a (dyn Method + Send + Sync),
    /// Adapter and special rows, for methods that have them.
    pub adapter: Option<&'a AdapterView>,
    /// Mean and deviation of each dimension over unlabelled text.
    pub standardisation: Option<&'a Standardisation>,
}

impl Embedder<'_> {
    /// Embeds texts; `progress` is told the number of texts finished so far.
    ///
    /// # Errors
    /// When a text has no tokens or cannot be encoded, or a vector comes out not finite; the message has its number.
    pub fn embed(
        &self,
        texts: &[impl AsRef<str>],
        options: &EmbedOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Embeddings, Error> {
        self.embed_after(None, texts, options, progress)
    }

    /// As [`Embedder::embed`], each text after the instruction in the way of the method. The instruction is never cut;
    /// where it leaves less room, texts are.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub fn embed_instructed(
        &self,
        instruction: &str,
        texts: &[impl AsRef<str>],
        options: &EmbedOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Embeddings, Error> {
        self.embed_after(Some(instruction), texts, options, progress)
    }

    fn embed_after(
        &self,
        instruction: Option<&str>,
        texts: &[impl AsRef<str>],
        options: &EmbedOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Embeddings, Error> {
        let before = match instruction {
            Some(instruction) => Some(self.tokenizer.encode(&self.method.instructed(instruction, "")[0])?),
            None => None,
        };
        let limit = self.limit(before.as_deref(), options)?;
        let encode = |(i, text): (usize, &str)| -> Result<(Vec<TokenId>, bool), Error> {
            let head = head(text, limit);
            let mut encoded = match instruction {
                Some(instruction) => self.tokenizer.encode(&self.method.instructed(instruction, head)[1])?,
                None => self.tokenizer.encode(head)?,
            };
            if encoded.is_empty() || text.is_empty() {
                return Err(Error::Setting {
                    field: format!("text {}", i + 1),
                    expected: "at least one token".into(),
                    found: "none".into(),
                });
            }
            let is_cut = encoded.len() > limit || head.len() < text.len();
            encoded.truncate(limit);
            Ok((encoded, is_cut))
        };
        let encoded = texts.iter().map(AsRef::as_ref).enumerate().map(encode).collect::<Result<Vec<_>, _>>()?;
        let num_truncated = encoded.iter().filter(|(_, is_cut)| *is_cut).count();
        let row = |(ids, _): &(Vec<TokenId>, bool)| self.row(before.as_deref(), ids);
        let rows = encoded.iter().map(row).collect::<Result<Vec<Layout>, _>>()?;
        Ok(Embeddings { num_truncated, ..self.embed_rows(&rows, options, progress)? })
    }

    /// The row of a text's tokens.
    ///
    /// # Errors
    /// When there are none, or one is outside the vocabulary.
    pub(crate) fn row_of(&self, ids: &[TokenId]) -> Result<Layout, Error> {
        let vocab_size = self.decoder.config().vocab_size;
        let setting = |expected: String, found: String| Error::Setting { field: "input".into(), expected, found };
        if ids.is_empty() {
            return Err(setting("at least one token".into(), "none".into()));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            let expected = format!("ids of this model's tokenizer, below {vocab_size}");
            return Err(setting(expected, id.to_string()));
        }
        self.row(None, ids)
    }

    /// Where the tokens of a text stand in its row; the last time, where the method repeats it.
    ///
    /// # Errors
    /// When the method cannot lay a text out.
    pub(crate) fn places_of(&self, row: &Layout, ids: &[TokenId]) -> Result<Vec<u32>, Error> {
        // The row of another text differs from this one in the places of the text alone.
        let vocab_size = self.decoder.config().vocab_size as u32;
        let others: Vec<TokenId> = ids.iter().map(|id| (id + 1) % vocab_size).collect();
        let other = self.row(None, &others)?;
        let differ = row.inputs().iter().zip(other.inputs()).map(|(a, b)| a != b);
        let places: Vec<u32> = (0..).zip(differ).filter(|(_, differ)| *differ).map(|(at, _)| at).collect();
        Ok(places[places.len().saturating_sub(ids.len())..].to_vec())
    }

    /// The row of a text, after an instruction if there is one.
    fn row(&self, before: Option<&[TokenId]>, text: &[TokenId]) -> Result<Layout, Error> {
        let mut plan = match before {
            Some(before) => self.method.instructed_plan(before, text)?,
            None => self.method.embed_plan(text)?,
        };
        Ok(plan.rows.swap_remove(0))
    }

    /// Most tokens that a text can have in a row of `longest_row` tokens.
    ///
    /// # Errors
    /// When the method cannot lay a text out.
    pub fn longest_text(&self, longest_row: usize) -> Result<usize, Error> {
        self.room(None, longest_row.min(self.decoder.config().max_position_embeddings))
    }

    /// Text tokens that fit: the asked limit, or what the model's longest row leaves beside the method's own tokens.
    fn limit(&self, before: Option<&[TokenId]>, options: &EmbedOptions) -> Result<usize, Error> {
        let room = self.room(before, self.decoder.config().max_position_embeddings)?;
        Ok(if options.max_tokens == 0 { room } else { options.max_tokens.min(room) })
    }

    /// Text tokens that fit into a row.
    fn room(&self, before: Option<&[TokenId]>, longest: usize) -> Result<usize, Error> {
        // Methods may repeat the text: room is found from how a row grows with its text.
        let grown = |n: usize| -> Result<usize, Error> { Ok(self.row(before, &vec![0; n])?.num_tokens()) };
        let (one, two) = (grown(1)?, grown(2)?);
        Ok((longest.saturating_sub(one) / (two - one).max(1) + 1).max(1))
    }

    /// Embeds encoded texts.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub fn embed_ids(
        &self,
        ids: &[Vec<TokenId>],
        options: &EmbedOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Embeddings, Error> {
        let rows = ids.iter().map(|ids| self.row(None, ids)).collect::<Result<Vec<Layout>, _>>()?;
        self.embed_rows(&rows, options, progress)
    }

    fn embed_rows(
        &self,
        rows: &[Layout],
        options: &EmbedOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Embeddings, Error> {
        const CPU_TOKENS: usize = 2048;
        const GPU_TOKENS: usize = 32_768;
        /// Of a GPU: so many that it runs one while the next is laid out, none so small that it waits for the host.
        const LEAST_BATCHES: usize = 4;
        /// As of [`LEAST_BATCHES`].
        const LEAST_TOKENS: usize = 8192;
        let lengths: Vec<usize> = rows.iter().map(Layout::num_tokens).collect();
        let mut embeddings =
            Embeddings { vectors: vec![Vec::new(); rows.len()], num_truncated: 0, num_tokens: lengths.iter().sum() };
        let (mut done, num_tokens) = (0, embeddings.num_tokens);
        let d = self.decoder.config().hidden_size;
        let mut take = |(batch, vectors): (Vec<usize>, Fetch)| -> Result<(), Error> {
            for (i, vector) in batch.iter().zip(vectors.finish()?.chunks(d)) {
                let mut vector = vector.to_vec();
                self.finish(&mut vector, options).map_err(|e| Error::Internal(format!("text {}: {e}", i + 1)))?;
                embeddings.vectors[*i] = vector;
            }
            done += batch.len();
            progress(done);
            Ok(())
        };
        // A GPU runs one batch while the next is laid out; on the CPU each is done when it comes back.
        let runs_on = !self.decoder.device().is_cpu();
        let batch_tokens = match (options.batch_tokens, runs_on) {
            (0, true) => GPU_TOKENS,
            (0, false) => CPU_TOKENS,
            (asked, _) => asked,
        };
        let shared_out = if runs_on { num_tokens.div_ceil(LEAST_BATCHES).max(LEAST_TOKENS) } else { usize::MAX };
        let mut running = None;
        for batch in pack(&lengths, batch_tokens.min(shared_out)) {
            let vectors = Fetch::start(&self.run(batch.iter().map(|i| &rows[*i]).collect::<Vec<_>>().as_slice())?)?;
            let before = running.replace((batch, vectors));
            if let Some(done) = if runs_on { before } else { running.take() } {
                take(done)?;
            }
        }
        running.map_or(Ok(()), take)?;
        Ok(embeddings)
    }

    /// The raw pooled vectors of rows that each pool one vector, `[B, D]`.
    fn run(&self, rows: &[&Layout]) -> Result<Tensor, Error> {
        let weights: Vec<&[(u32, f32)]> =
            rows.iter().map(|row| row.pooled().first().map_or(&[][..], |pooled| &pooled.weights)).collect();
        let on_cpu = self.decoder.device().is_cpu();
        let parts = rows.iter().zip(&weights).map(|(row, weights)| {
            // What is pooled, each row has for itself; attention over many keys wants them in one piece.
            let may_share = on_cpu && row.num_tokens() < MANY_KEYS;
            let first_pooled = weights.iter().map(|(at, _)| *at as usize).min().filter(|_| may_share);
            (*row, row.num_tokens(), first_pooled.unwrap_or(0))
        });
        let segment = Segment::sharing(&parts.collect::<Vec<_>>());
        let options = ForwardOptions { adapter: self.adapter, bf16_attention: true, ..ForwardOptions::default() };
        let hidden = self.decoder.forward(&segment, Kv::None, options)?;
        let mut pooled = vec![Vec::new(); rows.len()];
        for (row, start, first) in segment.starts() {
            pooled[row] = weights[row].iter().map(|(at, weight)| (at - start + first, *weight)).collect();
        }
        Ok(ops::pool(&hidden, pooled)?)
    }

    /// What is done to a pooled vector.
    ///
    /// # Errors
    /// When it is not finite.
    pub(crate) fn finish(&self, vector: &mut [f32], options: &EmbedOptions) -> Result<(), Error> {
        let not_finite = || Error::NotFinite("its vector is not finite".into());
        if let Some(standardisation) = self.standardisation.filter(|_| options.standardise) {
            standardisation.apply(vector).map_err(|error| match vector.iter().all(|x| x.is_finite()) {
                true => Error::from(error),
                false => not_finite(),
            })?;
        }
        let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(not_finite());
        }
        if options.normalise && norm > 0.0 {
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
        Ok(())
    }

    /// Mean and deviation of each dimension over unlabelled texts.
    ///
    /// # Errors
    /// As [`Embedder::embed`]; or with fewer than two texts.
    pub fn fit_standardisation(
        &self,
        ids: &[Vec<TokenId>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Standardisation, Error> {
        let options = EmbedOptions { standardise: false, normalise: false, ..EmbedOptions::default() };
        let mut moments = Moments::new(self.decoder.config().hidden_size);
        for vector in self.embed_ids(ids, &options, progress)?.vectors {
            moments.push(&vector)?;
        }
        Ok(moments.finish()?)
    }
}
