//! Runs training steps on rows of random tokens, for `scripts/bench_training.py` to take the CPU time of.
//!
//! Arguments: model file, steps, rows of a step, tokens of a row, method settings as JSON; frozen weights are bf16.

use lapidary::layout::{Example, Rng};
use lapidary::model::{Adapter, BaseModel, LoraConfig, ModelFiles, WeightFormat};
use lapidary::train::optimizer::{self, Group, Param, global_norm};
use lapidary::train::step::{LossWeights, StepModel, StepOptions, step};
use lapidary::train::{build_method, special_rows};
use rand::{Rng as _, SeedableRng as _};

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    kernels::prepare_process();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, steps, rows, tokens, settings] = arguments.as_slice() else {
        return Err("expected: MODEL STEPS ROWS TOKENS SETTINGS".into());
    };
    let (steps, rows, tokens): (u64, usize, usize) = (steps.parse()?, rows.parse()?, tokens.parse()?);
    let mut base = BaseModel::load(&ModelFiles::Gguf(model.into()))?;
    base.decoder.set_weight_format(WeightFormat::Bf16)?;
    let method = build_method(&base, "gem", serde_json::from_str(settings)?)?;
    let mut rng = Rng::seed_from_u64(0);
    let adapter =
        Adapter::new(&base.decoder, Some(LoraConfig::default()), &special_rows(&base, method.as_ref())?, &mut rng)?;
    let mut params: Vec<Param> =
        adapter.lora_vars().into_iter().map(|(name, var)| Param::new(name, Group::Weights, var)).collect();
    params.extend(adapter.special_var().map(|var| Param::new("special_tokens".into(), Group::Special, var.clone())));
    let vars: Vec<_> = params.iter().map(|param| param.var.clone()).collect();
    let vocabulary = base.decoder.config().vocab_size as u32;
    for number in 1..=steps {
        let plans = (0..rows)
            .map(|_| {
                let text = (0..tokens).map(|_| rng.random_range(100..vocabulary)).collect();
                method.train_plan(&Example { text, ..Example::default() }, &mut rng)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let weights = LossWeights { next_token: 0.0, contrastive: 1.0, alignment: 0.0, scale: 20.0, similarity: None };
        let options =
            StepOptions { micro_batch_tokens: 4096, split_frozen: true, hidden_dropout: 0.0, dropout_seed: 0 };
        let model = StepModel { decoder: &base.decoder, adapter: &adapter, vars: &vars };
        let result = step(&model, &plans, &weights, &options)?;
        let norm = global_norm(&result.gradients)?;
        let adamw = kernels::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        optimizer::step(&mut params, &result.gradients, (number, norm, 1.0), |_| (adamw, 1e-4))?;
        println!("{number} {:.4}", result.contrastive);
    }
    Ok(())
}
