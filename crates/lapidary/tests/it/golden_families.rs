//! Tiny random models of every family against `transformers` (`scripts/golden_families.py`): states after every layer,
//! logits, loss, all gradients, ten AdamW steps, greedy decoding.

use kernels::{AdamW, ops};
use lapidary::model::{Adapter, Decoder, ForwardOptions, Kv, Segment};
use lapidary::train::optimizer::{self, Group, Param};
use lapidary::train::step::LossWeights;
use layout::{Layout, Plan, Rng};
use rand::SeedableRng as _;

use crate::common::{
    Golden, WHOLE, close, close_to_largest, decoder, golden, plain_row, run_step, scalar_close, values,
};

/// Both sides compute in f32 with sums in another order; numbers are of order 1 to 10.
const TOLERANCE: f64 = 3e-5;
/// Share of the largest number of a gradient.
const GRADIENT_TOLERANCE: f64 = 2e-5;

struct Family {
    golden: Golden,
    rows: [Layout; 2],
}

impl Family {
    fn hidden(&self, decoder: &Decoder, numbers: &[usize]) {
        let rows: Vec<&Layout> = numbers.iter().map(|r| &self.rows[*r]).collect();
        let d = decoder.config().hidden_size;
        let mut states: Vec<Vec<f32>> = Vec::new();
        let mut observe = |i: usize, x: &kernels::Tensor| {
            assert_eq!(i, states.len());
            states.push(values(x));
        };
        let options = ForwardOptions { observe: Some(&mut observe), ..ForwardOptions::default() };
        let last = decoder.forward(&Segment::whole(rows.iter().copied()), Kv::None, options).unwrap();
        let logits = values(&decoder.logits(&last).unwrap());
        let last = values(&last);
        assert_eq!(states.len(), decoder.config().layers.len() + 1);
        let (mut first, vocab_size) = (0, decoder.config().vocab_size);
        for (r, row) in numbers.iter().zip(rows) {
            let part = first..first + row.num_tokens();
            let check = |found: &[f32], width: usize, name: String| {
                close(&found[part.start * width..part.end * width], self.golden.get(&name), TOLERANCE, &name);
            };
            for (i, state) in states.iter().enumerate() {
                check(state, d, format!("hidden.{r}.{i}"));
            }
            check(&last, d, format!("final.{r}"));
            check(&logits, vocab_size, format!("logits.{r}"));
            first = part.end;
        }
    }

    fn greedy(&self, decoder: &Decoder) {
        let mut cache = decoder.new_cache();
        let mut segment = Segment::whole([&self.rows[0]]);
        let mut found = Vec::new();
        let mut past = self.rows[0].num_tokens() as u32;
        while found.len() < 8 {
            let last = decoder.forward(&segment, Kv::Append(&mut cache), ForwardOptions::default()).unwrap();
            let last = ops::pool(&last, vec![vec![(segment.num_tokens() as u32 - 1, 1.0)]]).unwrap();
            let logits = values(&decoder.logits(&last).unwrap());
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            found.push(best);
            segment = Segment::next_tokens(0, &[best], past, past);
            past += 1;
        }
        assert_eq!(found, self.golden.ids("greedy.0"));
    }

    fn training(&self, decoder: &mut Decoder) {
        let vars = decoder.make_trainable().unwrap();
        let adapter = Adapter::new(decoder, None, &[], &mut Rng::seed_from_u64(0)).unwrap();
        let plans = self.rows.each_ref().map(|row| Plan { rows: vec![row.clone()] });
        let weights = LossWeights { next_token: 1.0, contrastive: 0.0, alignment: 0.0, scale: 20.0, similarity: None };
        let mut params: Vec<Param> =
            vars.iter().map(|(name, var)| Param::new(name.clone(), Group::Weights, var.clone())).collect();
        let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        for (number, loss) in self.golden.get("losses.adamw").iter().enumerate() {
            let result = run_step(decoder, &adapter, &vars, &plans, (weights, WHOLE));
            scalar_close(result.next_token, *loss, TOLERANCE, &format!("losses.adamw[{number}]"));
            if number == 0 {
                scalar_close(result.next_token, self.golden.get("loss")[0], TOLERANCE, "loss");
                let expected = self.golden.names().filter(|name| name.starts_with("grad.")).count();
                assert_eq!(expected, vars.len(), "number of trained weights");
                for ((name, _), gradient) in vars.iter().zip(&result.gradients) {
                    let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{name} has no gradient"));
                    close_to_largest(
                        &values(gradient),
                        self.golden.get(&format!("grad.{name}")),
                        GRADIENT_TOLERANCE,
                        name,
                    );
                }
            }
            let step = (number as u64 + 1, 0.0, f64::INFINITY);
            optimizer::step(&mut params, &result.gradients, step, |_| (adamw, 1e-2)).unwrap();
        }
    }
}

fn check(name: &str) {
    let folder = golden("families").join(name);
    let golden = Golden::read(&folder.join("golden.safetensors"));
    let rows = ["ids.0", "ids.1"].map(|ids| plain_row(&golden.ids(ids), true));
    let family = Family { golden, rows };
    for config in ["config.json", "config.published.json"] {
        let mut decoder = decoder(&folder, config);
        family.hidden(&decoder, &[0]);
        family.hidden(&decoder, &[1]);
        family.hidden(&decoder, &[0, 1]);
        family.greedy(&decoder);
        family.training(&mut decoder);
    }
}

macro_rules! families {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn no_family_is_left_out() {
            let folders = std::fs::read_dir(golden("families")).unwrap();
            let mut folders: Vec<String> = folders.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
            folders.sort();
            assert_eq!(folders, [$(stringify!($name)),*]);
        }
    };
}

families!(gemma2 gemma3 llama llama3 llama_bf16_sharded llama_bias llama_linear mistral qwen2 qwen2_sliding qwen3 smollm2 smollm3);
