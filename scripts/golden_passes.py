"""Writes the golden values of rows that read other rows' states, and of anchored visibility, run by `transformers`.

    python scripts/golden_passes.py

The model is the tiny Llama of `crates/lapidary/tests/golden/families/llama`; `crates/lapidary/tests/golden/passes`
gets golden.safetensors, float32:

    special              [4, D]  rows of special tokens
    ids                  int64 [8]
    icae.loss            [1]     text and two memory tokens -> their last states, special token 2, the text again:
                                 mean negative log-likelihood of the text
    icae.grad            [4, D]  its gradient by `special`
    autocompressor.loss  [1]     segments 0..2, 2..5, 5..8, one summary token after each of the first two, all earlier
                                 summaries before each; gradients end between the second and the third
    autocompressor.grad  [4, D]
    sepllm.ids           int64 [12]
    sepllm.final         [12, D] states after the last norm where a token sees the first two, tokens 7 and 9, and the
                                 two neighbours before it
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).resolve().parent.parent / "crates/lapidary/tests/golden"


def states(model, embeds, mask=None):
    positions = torch.arange(embeds.shape[0])[None]
    return model.model(inputs_embeds=embeds[None], attention_mask=mask, position_ids=positions,
                       use_cache=False).last_hidden_state[0]


def nll(model, hidden, labels):
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), labels, reduction="sum")


def icae(model, special, ids):
    text = model.model.embed_tokens(ids)
    memory = states(model, torch.cat([text, special[:2]]))[-2:]
    hidden = states(model, torch.cat([memory, special[2:3], text]))
    return nll(model, hidden[2:-1], ids) / len(ids)


def autocompressor(model, special, ids):
    text, summaries, total = model.model.embed_tokens(ids), [], 0.0
    for number, (start, end) in enumerate([(0, 2), (2, 5), (5, 8)]):
        # Two segments share their gradients; what earlier ones left behind is a constant.
        soft = [s if n // 2 == number // 2 else s.detach() for n, s in enumerate(summaries)]
        last = [special[:1]] if end < 8 else []
        hidden = states(model, torch.cat([*soft, text[start:end], *last]))
        labels = ids[start + 1:end + 1]
        total = total + nll(model, hidden[len(soft):len(soft) + len(labels)], labels)
        summaries.append(hidden[-1:])
    return total / (len(ids) - 1)


def anchored(model, ids):
    far = torch.full((len(ids), len(ids)), torch.finfo(torch.float32).min)
    for query in range(len(ids)):
        for key in range(query + 1):
            if key < 2 or ids[key] in (7, 9) or query - key < 3:
                far[query, key] = 0.0
    return states(model, model.model.embed_tokens(ids), far[None, None])


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "families/llama", dtype=torch.float32,
                                                 attn_implementation="eager")
    ids = torch.tensor([11, 35, 62, 8, 90, 17, 43, 29])
    special = torch.randn(4, model.config.hidden_size) * 0.5
    golden = {"special": special, "ids": ids}
    for name, loss in [("icae", icae), ("autocompressor", autocompressor)]:
        rows = special.clone().requires_grad_()
        value = loss(model, rows, ids)
        value.backward()
        golden |= {f"{name}.loss": value.detach()[None], f"{name}.grad": rows.grad}
    row = torch.tensor([11, 35, 62, 7, 90, 17, 43, 9, 29, 51, 66, 12])
    golden |= {"sepllm.ids": row, "sepllm.final": anchored(model, row).detach()}
    save_file({name: tensor.contiguous() for name, tensor in golden.items()}, GOLDEN / "passes/golden.safetensors")


if __name__ == "__main__":
    main()
