//! Losses and gradients of one optimiser step, in micro-batches that do not change the result.
//!
//! A row's leading segment that needs no gradient (a property of the row, [`Layout::frozen_len`]) runs once
//! through the inference path; the rest runs with a graph against its keys and values. The contrastive loss is
//! taken over the vectors of all micro-batches (GradCache, arXiv 2101.06983).

use super::contrastive::{Vectors, info_nce};
use super::similarity::{TeacherCosines, distil};
use crate::Error;
use crate::model::{Adapter, AdapterView, Decoder, ForwardOptions, HiddenDropout, Kv, KvCache, Segment};
use kernels::ops;
use kernels::{Device, Tensor, Var};
use layout::{Layout, Plan, Rng, TokenId, View};
use rand::SeedableRng as _;
use std::ops::Range;

/// Weights of the losses, and the temperature of the contrastive one.
#[derive(Debug, Clone, Copy)]
pub struct LossWeights<'a> {
    /// Weight of the next-token loss.
    pub next_token: f64,
    /// Weight of the contrastive loss.
    pub contrastive: f64,
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
    /// Contrastive loss, nats; NaN without pairs, or where neither it nor the similarities have a weight.
    pub contrastive: f64,
    /// One minus the correlation of the queries' cosines with the teacher's; NaN without a teacher.
    pub similarity: f64,
    /// Mean cosine of different queries; NaN where no vectors are made.
    pub mean_pairwise_cosine: f64,
    /// d loss / d log scale of the contrastive loss, weighted.
    pub log_scale_gradient: f64,
    /// Gradients in the order of the variables; `None` where no loss reached.
    pub gradients: Vec<Option<Tensor>>,
    /// Positions run, with and without graph.
    pub num_tokens: usize,
}

/// Rows that run together, and the keys and values of their frozen parts.
struct MicroBatch<'a> {
    rows: Vec<&'a Layout>,
    frozen: Vec<usize>,
    cache: KvCache,
    dropout_seed: u64,
}

/// The model of a step: what runs, and what is trained.
pub struct StepModel<'a> {
    /// The decoder; its weights are variables in a full fine-tune.
    pub decoder: &'a Decoder,
    /// The adapter and special rows.
    pub adapter: &'a Adapter,
    /// All trained variables, in the optimiser's order.
    pub vars: &'a [Var],
}

impl MicroBatch<'_> {
    fn graph_parts(&self) -> impl Iterator<Item = (&Layout, Range<usize>)> {
        self.rows.iter().zip(&self.frozen).map(|(row, frozen)| (*row, *frozen..row.num_tokens()))
    }

    /// Parts up to the last pooled position: enough for the vectors.
    fn pooled_parts(&self) -> impl Iterator<Item = (&Layout, Range<usize>)> {
        self.rows.iter().zip(&self.frozen).map(|(row, frozen)| (*row, *frozen..row.last_pooled_end().max(*frozen)))
    }
}

/// For each view, the pooled positions within a segment made of `parts`.
fn pooled_rows<'a>(parts: impl Iterator<Item = (&'a Layout, Range<usize>)>) -> Vec<(View, Vec<(u32, f32)>)> {
    let mut all = Vec::new();
    let mut first = 0;
    for (row, part) in parts {
        let place = |at: u32| (first + at as usize - part.start) as u32;
        all.extend(row.pooled().iter().map(|p| (p.view, p.weights.iter().map(|(at, w)| (place(*at), *w)).collect())));
        first += part.len();
    }
    all
}

/// Labelled positions within a segment made of `parts`.
fn labels<'a>(parts: impl Iterator<Item = (&'a Layout, Range<usize>)>) -> (Vec<Vec<(u32, f32)>>, Vec<TokenId>) {
    let (mut places, mut ids) = (Vec::new(), Vec::new());
    let mut first = 0;
    for (row, part) in parts {
        for at in part.clone() {
            if let Some(id) = row.labels()[at] {
                places.push(vec![((first + at - part.start) as u32, 1.0)]);
                ids.push(id);
            }
        }
        first += part.len();
    }
    (places, ids)
}

/// Groups the rows that run, plan by plan, so that the positions with a graph stay within the budget.
fn micro_batches<'a>(
    plans: &'a [Plan],
    runs: &dyn Fn(&Layout) -> bool,
    model: &StepModel<'_>,
    options: &StepOptions,
) -> Result<Vec<MicroBatch<'a>>, Error> {
    let frozen = |row: &Layout| if options.split_frozen { row.frozen_len() } else { 0 };
    let mut groups: Vec<Vec<&Layout>> = Vec::new();
    let mut tokens = 0;
    for plan in plans {
        let rows = || plan.rows.iter().filter(|row| runs(row));
        let graph: usize = rows().map(|row| row.num_tokens() - frozen(row)).sum();
        match groups.last_mut() {
            Some(group) if tokens + graph <= options.micro_batch_tokens => {
                group.extend(rows());
                tokens += graph;
            }
            _ => {
                groups.push(rows().collect());
                tokens = graph;
            }
        }
    }
    let build = |(i, rows): (usize, Vec<&'a Layout>)| {
        let frozen: Vec<usize> = rows.iter().map(|row| frozen(row)).collect();
        let mut cache = model.decoder.new_cache();
        let prefix = Segment::of_rows(rows.iter().zip(&frozen).map(|(row, frozen)| (*row, 0..*frozen)));
        if prefix.num_tokens() > 0 {
            model.decoder.forward(&prefix, Kv::Append(&mut cache), ForwardOptions::default())?;
        }
        let dropout_seed = options.dropout_seed.wrapping_add(i as u64);
        Ok(MicroBatch { rows, frozen, cache, dropout_seed })
    };
    groups.into_iter().enumerate().map(build).collect()
}

fn forward(
    model: &StepModel<'_>,
    batch: &MicroBatch<'_>,
    segment: &Segment,
    view: &AdapterView,
    ratio: f32,
) -> Result<Tensor, Error> {
    let mut rng = Rng::seed_from_u64(batch.dropout_seed);
    let dropout = if ratio > 0.0 { Some(HiddenDropout { ratio, rng: &mut rng }) } else { None };
    let options = ForwardOptions { adapter: Some(view), dropout, observe: None };
    model.decoder.forward(segment, Kv::Past(&batch.cache), options)
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
    let (segment, pooled) = if ratio > 0.0 {
        (Segment::of_rows(batch.graph_parts()), pooled_rows(batch.graph_parts()))
    } else {
        (Segment::of_rows(batch.pooled_parts()), pooled_rows(batch.pooled_parts()))
    };
    if pooled.is_empty() {
        return Ok(Vec::new());
    }
    let detached = StepModel { decoder, ..*model };
    let hidden = forward(&detached, batch, &segment, view, ratio)?;
    let (views, rows): (Vec<View>, Vec<_>) = pooled.into_iter().unzip();
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
    let rows = || plans.iter().flat_map(|p| &p.rows);
    // Vectors that no loss asks for are not made, and rows that have nothing else do not run.
    let wants_vectors = weights.contrastive > 0.0 || weights.similarity.is_some();
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
        similarity: f64::NAN,
        mean_pairwise_cosine: f64::NAN,
        log_scale_gradient: 0.0,
        gradients: Vec::new(),
        num_tokens: batches.iter().flat_map(|batch| &batch.rows).map(|row| row.num_tokens()).sum(),
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
    let nce = info_nce(vectors, d, weights.scale);
    result.contrastive = nce.loss;
    result.mean_pairwise_cosine = nce.mean_pairwise_cosine;
    result.log_scale_gradient = nce.log_scale_gradient * weights.contrastive;
    let mut gradient = nce.gradient;
    gradient.scale(weights.contrastive as f32);
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
        let segment = Segment::of_rows(batch.graph_parts());
        if segment.num_tokens() == 0 {
            return Ok(());
        }
        let hidden = forward(self.model, batch, &segment, view, self.options.hidden_dropout)?;
        let mut loss: Option<Tensor> = None;
        let mut add = |term: Tensor| -> Result<(), Error> {
            loss = Some(match loss.take() {
                Some(sum) => (sum + term)?,
                None => term,
            });
            Ok(())
        };
        let pooled = if self.wants_pairs { pooled_rows(batch.graph_parts()) } else { Vec::new() };
        if !pooled.is_empty() {
            let (views, rows): (Vec<View>, Vec<_>) = pooled.into_iter().unzip();
            let z = ops::pool(&hidden, rows)?; // [_, D]
            let mut own = Vectors::default();
            for (view, z) in views.iter().zip(z.to_vec2::<f32>()?) {
                side(&mut own, *view).extend(z);
            }
            let mut dz = gradient(&own);
            let d = z.dim(1)?;
            // The sum of z * dz has dz as its gradient by z: the closed form enters the graph here.
            let flat: Vec<f32> =
                views.iter().flat_map(|view| side(&mut dz, *view).drain(..d).collect::<Vec<f32>>()).collect();
            let dz = Tensor::from_vec(flat, z.dims(), &Device::Cpu)?;
            add((z * dz)?.sum_all()?)?;
        }
        let (places, ids) = labels(batch.graph_parts());
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
            if let Some(gradient) = store.remove(var) {
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient)?,
                    None => gradient,
                });
            }
        }
        Ok(())
    }
}
