"""Times training, embedding, decoding and prefill on a GPU against PyTorch on the same one, the two sides in turn.

usage: gpu_bench.py --workload PROGRAM --model MODEL.gguf --texts LINES.txt [--rounds N] [--only NAME]... [--out FILE.md]
PROGRAM is the example `workload` built with the feature `cuda`; the recipe learns from LINES.txt, all else reads it. Both sides use bf16; PyTorch is `gpu_peers.py` beside this
file, on weights of the same shape, with SDPA and torch.compile, and with CUDA graphs but for embedding.
Needs PyTorch with CUDA, and CUDA's libraries where the loader finds them.
"""
import argparse, json, statistics, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).parent


def contests(model, texts, rows):
    ours = {"model": model, "weights": "bf16", "cuda": True, "texts": texts}
    size = ["budget.rows=32000", "budget.batch_rows=512", "budget.micro_batch_tokens=65536"]
    recipe = {"work": "recipe", "recipe": str(HERE.parent / "recipes/gem.toml"),
              "overrides": [f"data.paths={json.dumps([texts])}", *size]}
    train = lambda scope, rows, tokens: (
        {**ours, "work": "train", "scope": scope, "full": False, "rows": rows, "tokens": tokens, "dropout": "delete",
         "micro_batch_tokens": 65536},
        {"work": "train", "scope": scope, "rows": rows, "tokens": tokens, "special": 6, "split": scope == "special"},
    )
    return {
        "train, special, 64 rows of 32": train("special", 64, 32),
        "train, special, 512 rows of 32": train("special", 512, 32),
        "train, special, 128 rows of 256": train("special", 128, 256),
        "train, all, 512 rows of 32": train("all", 512, 32),
        "recipe, 32,000 rows": (
            {**ours, **recipe},
            {"work": "recipe", "rows": rows, "special": 10, "pieces": 2, "rank": 8, "lora_alpha": 64,
             "learning_rate": 1e-3},
        ),
        "embed, 2,000 sentences": (
            {**ours, "work": "embed", "batch_tokens": 32768, "encoded": True},
            {"work": "embed", "num_texts": 2000, "min_tokens": 8, "max_tokens": 48, "batch_tokens": 32768},
        ),
        "prefill, 2,048 tokens": ({**ours, "work": "prefill", "tokens": 2048}, {"work": "prefill", "tokens": 2048}),
        "decode, 256 tokens behind 512": (
            {**ours, "work": "decode", "prompt_tokens": 512, "new_tokens": 256},
            {"work": "decode", "prompt_tokens": 512, "new_tokens": 256, "rows": 1},
        ),
        "decode, 64 tokens behind 512, eight rows": (
            {**ours, "work": "decode", "prompt_tokens": 512, "new_tokens": 64, "rows": 8},
            {"work": "decode", "prompt_tokens": 512, "new_tokens": 64, "rows": 8},
        ),
    }


def run(command, repeat, job):
    result = subprocess.run([*command, json.dumps({**job, "repeat": repeat})], capture_output=True, text=True)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not lines:
        print(f"{command[-1]}: {result.stderr[-1500:]}", file=sys.stderr)
    return lines


def summary(lines):
    rates = [line["items"] / line["wall_secs"] for line in lines]
    tflops = statistics.median(line.get("flops", 0) / line["wall_secs"] for line in lines) / 1e12
    return statistics.median(rates), min(rates), max(rates), tflops, max(line.get("gpu_peak_mib", 0) for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sides = [[args.workload], [sys.executable, str(HERE / "gpu_peers.py")]]
    rows = ["| work | ours, a second | PyTorch, a second | ratio | ours, TFLOP/s | peak MiB, ours | PyTorch |", "|---|---|---|---|---|---|---|"]
    rows_of_recipe = str(Path(tempfile.mkdtemp()) / "rows.jsonl")
    for name, jobs in contests(args.model, args.texts, rows_of_recipe).items():
        if args.only and not any(part in name for part in args.only):
            continue
        if jobs[1]["work"] == "recipe":
            written = {**jobs[0], "cuda": False, "rows": rows_of_recipe, "repeat": 1}
            subprocess.run([args.workload, json.dumps(written)], check=True)
        found = [[], []]
        for _ in range(args.rounds):
            for lines, side, job in zip(found, sides, jobs):
                lines += run(side, args.repeat, job)
        cells = [summary(lines) if lines else None for lines in found]
        rate = lambda cell: f"{cell[0]:,.0f} ({cell[1]:,.0f} to {cell[2]:,.0f})" if cell else "failed"
        ours, peer = cells
        ratio = f"{ours[0] / peer[0]:.2f}" if ours and peer else "-"
        rows.append(f"| {name} | {rate(ours)} | {rate(peer)} | {ratio} | {ours[3] if ours else 0:.1f} "
                    f"| {ours[4] if ours else 0:,.0f} | {peer[4] if peer else 0:,.0f} |")
        print(rows[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
