//! Losses and gradients of one optimiser step, in micro-batches that do not change the result.
//!
//! A row's leading segment that needs no gradient (a property of the row, [`Layout::frozen_len`]) runs once
//! through the inference path; the rest runs with a graph against its keys and values. The contrastive loss is
//! taken over the vectors of all micro-batches (GradCache, arXiv 2101.06983).

use super::alignment::align;
use super::contrastive::{Vectors, info_nce, mean_pairwise_cosine};
use super::similarity::{TeacherCosines, distil};
use crate::Error;
use crate::model::{Adapter, AdapterView, Decoder, ForwardOptions, Kv, KvCache, PassRow, Passes, Segment};
use kernels::ops;
use kernels::ops::halves::ParameterGradients;
use kernels::{Tensor, Var};
use layout::{Input, Layout, Plan, Rng, TokenId, View};
use rand::SeedableRng as _;
use std::ops::Range;
use std::sync::Arc;

/// Weights of the losses, and the temperature of the contrastive one.
#[derive(Debug, Clone, Copy)]
pub struct LossWeights<'a> {
    /// Weight of the next-token loss.
    pub next_token: f64,
    /// Weight of the contrastive loss.
    pub contrastive: f64,
    /// Weight of the alignment of queries with their positives.
    pub alignment: f64,
    /// `1 / temperature`.
    pub scale: f32,
    /// Weight of the distillation of similarities, and the teacher's cosines of the batch's texts.
    pub similarity: Option<(f64, &'a TeacherCosines)>,
}

/// How the step is run.
#[derive(Debug, Clone, Copy)]
pub struct StepOptions {
    /// Positions run with a graph at a time.
    pub micro_batch_tokens: usize,
    /// Leading segments without trained weights may go through the inference path.
    pub split_frozen: bool,
    /// Dropout of hidden states where gradients flow.
    pub hidden_dropout: f32,
    /// Seed of that dropout for this step.
    pub dropout_seed: u64,
}

/// The result of a step.
#[derive(Debug)]
pub struct StepResult {
    /// Mean next-token loss over the labels of the rows that ran, nats; NaN without any. Rows that carry nothing but
    /// labels do not run for a loss without weight.
    pub next_token: f64,
    /// Contrastive loss, nats; NaN without pairs or weight.
    pub contrastive: f64,
    /// Mean of one minus the cosine of a query and its positive; NaN where it has no weight.
    pub alignment: f64,
    /// One minus the correlation of the queries' cosines with the teacher's; NaN without a teacher.
    pub similarity: f64,
    /// Mean cosine of different queries; NaN where no vectors are made.
    pub mean_pairwise_cosine: f64,
    /// d loss / d log scale of the contrastive loss, weighted.
    pub log_scale_gradient: f64,
    /// Gradients in the order of the variables; `None` where no loss reached.
    pub gradients: Vec<Option<Tensor>>,
    /// Positions of the rows that ran, with and without graph, of each row also those that it begins with as another does.
    pub num_tokens: usize,
}

/// Rows that run together, and the keys and values of their frozen parts.
struct MicroBatch<'a> {
    /// Of each row the part with a graph.
    passes: Passes<'a>,
    cache: KvCache,
    dropout_seed: u64,
}

/// The model of a step: what runs, and what is trained.
pub struct StepModel<'a> {
    /// The decoder; its weights are variables in a full fine-tune.
    pub decoder: &'a Decoder,
    /// What frozen parts run through: the decoder, or a copy of it whose weights have another format.
    pub prefix: &'a Decoder,
    /// The adapter and special rows.
    pub adapter: &'a Adapter,
    /// All trained variables, in the optimiser's order.
    pub vars: &'a [Var],
}

/// For each view, the pooled positions among the hidden states.
fn pooled_rows(passes: &Passes<'_>) -> (Vec<View>, Vec<Vec<(u32, f32)>>) {
    passes.rows().iter().flat_map(PassRow::pooled).unzip()
}

/// Labelled positions among the hidden states, and their labels.
fn labels(passes: &Passes<'_>) -> (Vec<Vec<(u32, f32)>>, Vec<TokenId>) {
    let of_row = |row: &PassRow<'_>| {
        let labelled = row.part.clone().filter_map(|at| Some((vec![(row.place(at), 1.0)], row.layout.labels()[at]?)));
        labelled.collect::<Vec<_>>()
    };
    passes.rows().iter().flat_map(of_row).unzip()
}

/// The first position of each row that runs with a graph: what comes before is frozen, and nothing reads its states.
fn graph_starts(plan: &Plan) -> Vec<usize> {
    let pooled = |row: &Layout| row.pooled().iter().flat_map(|pooled| &pooled.weights).map(|(at, _)| *at).min();
    let first_read = |row: &Layout| pooled(row).map_or(usize::MAX, |at| at as usize).min(row.frozen_len());
    let mut starts: Vec<usize> = plan.rows.iter().map(first_read).collect();
    for input in plan.rows.iter().flat_map(Layout::inputs) {
        let Input::Soft { row, position, .. } = *input else { continue };
        if let Some(start) = starts.get_mut(row as usize) {
            *start = (*start).min(position as usize);
        }
    }
    starts
}

/// Which rows of a plan run: those that `wanted` says, and those whose states they read.
fn running(plan: &Plan, wanted: &dyn Fn(&Layout) -> bool) -> Vec<bool> {
    let mut runs: Vec<bool> = plan.rows.iter().map(wanted).collect();
    for reader in (0..plan.rows.len()).rev() {
        for input in plan.rows[reader].inputs() {
            let Input::Soft { row, .. } = *input else { continue };
            if runs[reader]
                && let Some(runs) = runs.get_mut(row as usize)
            {
                *runs = true;
            }
        }
    }
    runs
}

/// Groups plans so that the positions with a graph stay within the budget.
fn micro_batches<'a>(
    plans: &'a [Plan],
    wanted: &dyn Fn(&Layout) -> bool,
    model: &StepModel<'_>,
    options: &StepOptions,
) -> Result<Vec<MicroBatch<'a>>, Error> {
    /// Plans, and of each of their rows the part with a graph.
    type Group<'a> = (Vec<&'a Plan>, Vec<Range<usize>>);
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut tokens = 0;
    for plan in plans {
        let starts = if options.split_frozen { graph_starts(plan) } else { vec![0; plan.rows.len()] };
        let parts: Vec<Range<usize>> = (plan.rows.iter().zip(starts).zip(running(plan, wanted)))
            .map(|((row, start), runs)| if runs { start..row.num_tokens() } else { 0..0 })
            .collect();
        let graph: usize = parts.iter().map(Range::len).sum();
        match groups.last_mut() {
            Some((group, all)) if tokens + graph <= options.micro_batch_tokens => {
                group.push(plan);
                all.extend(parts);
                tokens += graph;
            }
            _ => {
                groups.push((vec![plan], parts));
                tokens = graph;
            }
        }
    }
    let build = |(i, (plans, parts)): (usize, Group<'a>)| {
        let mut parts = parts.into_iter();
        let passes = Passes::new(plans, |_| parts.next().unwrap_or_default())?;
        let mut cache = model.decoder.new_cache();
        let on_cpu = model.decoder.device().is_cpu();
        let frozen = |row: &PassRow<'a>| (row.layout, row.part.start, if on_cpu { row.part.start } else { 0 });
        let prefix = Segment::sharing(&passes.rows().iter().map(frozen).collect::<Vec<_>>());
        if prefix.num_tokens() > 0 {
            // Its keys are the same for every pass behind it. On a CPU, where f32 costs less, they are those of a row that is
            // not split, too, unless the prefix has weights of its own.
            let bf16_attention = !on_cpu;
            model.prefix.append(&prefix, &mut cache, ForwardOptions { bf16_attention, ..ForwardOptions::default() })?;
        }
        let dropout_seed = options.dropout_seed.wrapping_add(i as u64);
        Ok(MicroBatch { passes, cache, dropout_seed })
    };
    groups.into_iter().enumerate().map(build).collect()
}

fn forward(
    model: &StepModel<'_>,
    batch: &MicroBatch<'_>,
    passes: &Passes<'_>,
    view: &AdapterView,
    ratio: f32,
) -> Result<Tensor, Error> {
    let mut rng = Rng::seed_from_u64(batch.dropout_seed);
    let dropout = if ratio > 0.0 { Some((ratio, &mut rng)) } else { None };
    passes.forward(model.decoder, Kv::Past(&batch.cache), Some(view), dropout)
}

/// The vectors of a micro-batch by view, `[_, D]` each, without a graph.
fn vectors_of(
    model: &StepModel<'_>,
    decoder: &Decoder,
    batch: &MicroBatch<'_>,
    view: &AdapterView,
    ratio: f32,
) -> Result<Vec<(View, Vec<f32>)>, Error> {
    // Dropout draws a number for each position in turn, so that the same positions must run as in the graph pass.
    let passes = if ratio > 0.0 { batch.passes.clone() } else { batch.passes.up_to_pooled() };
    let (views, rows) = pooled_rows(&passes);
    if views.is_empty() {
        return Ok(Vec::new());
    }
    let detached = StepModel { decoder, ..*model };
    let hidden = forward(&detached, batch, &passes, view, ratio)?;
    let z = ops::pool(&hidden, rows)?.to_vec2::<f32>()?;
    Ok(views.into_iter().zip(z).collect())
}

fn side(vectors: &mut Vectors, view: View) -> &mut Vec<f32> {
    match view {
        View::Query => &mut vectors.query,
        View::Positive => &mut vectors.positive,
        View::Negative => &mut vectors.negative,
    }
}

/// Losses and gradients of a batch of plans.
///
/// # Errors
/// When a row does not fit the model.
pub fn step(
    model: &StepModel<'_>,
    plans: &[Plan],
    weights: &LossWeights<'_>,
    options: &StepOptions,
) -> Result<StepResult, Error> {
    kernels::on_pool(|| losses_and_gradients(model, plans, weights, options))
}

fn losses_and_gradients(
    model: &StepModel<'_>,
    plans: &[Plan],
    weights: &LossWeights<'_>,
    options: &StepOptions,
) -> Result<StepResult, Error> {
    let rows = || plans.iter().flat_map(|p| &p.rows);
    // Vectors that no loss asks for are not made, and rows that have nothing else do not run.
    let wants_vectors = weights.contrastive > 0.0 || weights.alignment > 0.0 || weights.similarity.is_some();
    let wants_pairs = wants_vectors && rows().any(|row| !row.pooled().is_empty());
    let wants_labels = weights.next_token > 0.0;
    let runs = |row: &Layout| {
        (wants_vectors && !row.pooled().is_empty()) || (wants_labels && row.labels().iter().any(Option::is_some))
    };
    let batches = micro_batches(plans, &runs, model, options)?;
    let d = model.decoder.config().hidden_size;
    let num_labels = rows().filter(|row| runs(row)).flat_map(Layout::labels).flatten().count();
    let tracked = model.adapter.view(true);
    let gradients = vec![None; model.vars.len()];
    let mut run = Run { model, options, weights, wants_pairs, num_labels, next_token: 0.0, gradients };
    let mut result = StepResult {
        next_token: f64::NAN,
        contrastive: f64::NAN,
        alignment: f64::NAN,
        similarity: f64::NAN,
        mean_pairwise_cosine: f64::NAN,
        log_scale_gradient: 0.0,
        gradients: Vec::new(),
        num_tokens: batches.iter().flat_map(|batch| batch.passes.rows()).map(|row| row.part.end).sum(),
    };
    let mut from_vectors = |vectors: &Vectors| {
        if wants_pairs { vectors_gradient(vectors, d, weights, &mut result) } else { Vectors::default() }
    };
    if let [batch] = batches.as_slice() {
        run.micro_batch(batch, &tracked, from_vectors)?;
    } else {
        let (detached, view) = (model.decoder.detached(), model.adapter.view(false));
        let mut all = Vectors::default();
        if wants_pairs {
            for batch in &batches {
                let vectors = vectors_of(model, &detached, batch, &view, options.hidden_dropout)?;
                vectors.into_iter().for_each(|(view, z)| side(&mut all, view).extend(z));
            }
        }
        let mut gradient = from_vectors(&all);
        for batch in &batches {
            // Vectors were collected micro-batch by micro-batch: each takes its share from the front.
            run.micro_batch(batch, &tracked, |own| {
                let mut take = |view: View, count: usize| side(&mut gradient, view).drain(..count).collect();
                Vectors {
                    query: take(View::Query, own.query.len()),
                    positive: take(View::Positive, own.positive.len()),
                    negative: take(View::Negative, own.negative.len()),
                }
            })?;
        }
    }
    if num_labels > 0 {
        result.next_token = run.next_token / num_labels as f64;
    }
    result.gradients = run.gradients;
    Ok(result)
}

/// The weighted gradient of the losses over vectors; the losses go into `result`.
fn vectors_gradient(vectors: &Vectors, d: usize, weights: &LossWeights<'_>, result: &mut StepResult) -> Vectors {
    result.mean_pairwise_cosine = mean_pairwise_cosine(&vectors.query, d);
    let mut gradient = if weights.contrastive > 0.0 {
        let nce = info_nce(vectors, d, weights.scale);
        result.contrastive = nce.loss;
        result.log_scale_gradient = nce.log_scale_gradient * weights.contrastive;
        nce.gradient
    } else {
        let zeros = |vectors: &Vec<f32>| vec![0.0; vectors.len()];
        let Vectors { query, positive, negative } = vectors;
        Vectors { query: zeros(query), positive: zeros(positive), negative: zeros(negative) }
    };
    gradient.scale(weights.contrastive as f32);
    if weights.alignment > 0.0 {
        let found = align(vectors, d);
        result.alignment = found.loss;
        let sides = [(&mut gradient.query, found.query), (&mut gradient.positive, found.positive)];
        for (sum, added) in sides {
            sum.iter_mut().zip(added).for_each(|(sum, g)| *sum += weights.alignment as f32 * g);
        }
    }
    if let Some((weight, teacher)) = weights.similarity {
        // The queries alone: a given positive is another text than the teacher read.
        let found = distil(&vectors.query, d, teacher);
        result.similarity = found.loss;
        gradient.query.iter_mut().zip(found.gradient).for_each(|(sum, g)| *sum += weight as f32 * g);
    }
    gradient
}

/// A step in progress.
struct Run<'a> {
    model: &'a StepModel<'a>,
    options: &'a StepOptions,
    weights: &'a LossWeights<'a>,
    wants_pairs: bool,
    num_labels: usize,
    next_token: f64,
    gradients: Vec<Option<Tensor>>,
}

impl Run<'_> {
    /// Runs one micro-batch with a graph and adds its gradients; `gradient` gives the weighted d loss / d vectors.
    fn micro_batch(
        &mut self,
        batch: &MicroBatch<'_>,
        view: &AdapterView,
        gradient: impl FnOnce(&Vectors) -> Vectors,
    ) -> Result<(), Error> {
        if batch.passes.num_tokens() == 0 {
            return Ok(());
        }
        let aside = Arc::new(ParameterGradients::default());
        let view = &view.with_gradients(Arc::clone(&aside));
        let hidden = forward(self.model, batch, &batch.passes, view, self.options.hidden_dropout)?;
        let mut loss: Option<Tensor> = None;
        let mut add = |term: Tensor| -> Result<(), Error> {
            loss = Some(match loss.take() {
                Some(sum) => (sum + term)?,
                None => term,
            });
            Ok(())
        };
        let (views, rows) = if self.wants_pairs { pooled_rows(&batch.passes) } else { Default::default() };
        if !views.is_empty() {
            let z = ops::pool(&hidden, rows)?; // [_, D]
            let mut own = Vectors::default();
            for (view, z) in views.iter().zip(z.to_vec2::<f32>()?) {
                side(&mut own, *view).extend(z);
            }
            let Vectors { query, positive, negative } = gradient(&own);
            let d = z.dim(1)?;
            let (mut query, mut positive, mut negative) = (query.chunks(d), positive.chunks(d), negative.chunks(d));
            let mut next = |view: &View| match view {
                View::Query => query.next(),
                View::Positive => positive.next(),
                View::Negative => negative.next(),
            };
            let missing = || Error::Internal("a vector without a gradient".into());
            let rows = views.iter().map(|view| next(view).ok_or_else(missing)).collect::<Result<Vec<_>, _>>()?;
            // The sum of z * dz has dz as its gradient by z: the closed form enters the graph here.
            let dz = Tensor::from_vec(rows.concat(), z.dims(), z.device())?;
            add((z * dz)?.sum_all()?)?;
        }
        let (places, ids) = labels(&batch.passes);
        if !ids.is_empty() {
            let nll = self.model.decoder.cross_entropy(&ops::pool(&hidden, places)?, &ids)?.sum_all()?;
            self.next_token += f64::from(nll.to_scalar::<f32>()?);
            if self.weights.next_token > 0.0 {
                add((nll * (self.weights.next_token / self.num_labels as f64))?)?;
            }
        }
        let Some(loss) = loss else { return Ok(()) };
        let mut store = loss.backward()?;
        for (var, sum) in self.model.vars.iter().zip(&mut self.gradients) {
            for gradient in [store.remove(var), aside.take(var)].into_iter().flatten() {
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient)?,
                    None => gradient,
                });
            }
        }
        Ok(())
    }
}
