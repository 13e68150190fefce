"""What transformers makes of gemma3-270m, from the same GGUF file: token ids, the largest logits, a greedy continuation.

usage: golden_gemma3.py GEMMA.gguf ../crates/lapidary/tests/golden/gemma3_270m.json
Needs torch, transformers, gguf. The weights are dequantised to float32 by transformers' own GGUF reader.
"""
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

path = Path(sys.argv[1]).resolve()
load = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
tokenizer = AutoTokenizer.from_pretrained(**load)
model = AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32).eval()
cases = []
for text in ["The capital of France is", "def fibonacci(n):\n    ", "Water boils at a temperature of"]:
    ids = [tokenizer.bos_token_id] + tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
        greedy = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                                max_new_tokens=12, do_sample=False)[0, len(ids):]
    top = torch.topk(logits, 8)
    cases.append(dict(text=text, ids=ids, top_ids=top.indices.tolist(), top_logits=top.values.tolist(),
                      log_sum_exp=torch.logsumexp(logits, 0).item(), greedy=greedy.tolist()))
Path(sys.argv[2]).write_text(json.dumps(cases, indent=1) + "\n")
