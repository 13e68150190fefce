"""Writes the golden values of the decoder tests: tiny random models of every family, run by `transformers`.

    python scripts/golden_families.py                 # all families
    python scripts/golden_families.py gemma2 qwen3    # some

Each folder `crates/lapidary/tests/golden/families/<name>` gets:

    config.json            as `save_pretrained` writes it
    config.published.json  the same model as published checkpoints spell it (rope_theta, rope_scaling, ...)
    model.safetensors      as `save_pretrained` writes it (two shards and an index for *_sharded)
    golden.safetensors     float32 unless said otherwise; r is the row (0 or 1), T its length:
        ids.{r}            int64 [T]
        hidden.{r}.{i}     [T, D]  residual stream: i = 0 after the (scaled) embedding, i = l after layer l
        final.{r}          [T, D]  after the last norm
        logits.{r}         [T, V]  after the final soft cap, where there is one
        loss               [1]     next-token cross-entropy: sum over the targets of both rows / their count
        grad.{name}        the parameter's shape: gradient of `loss`; a tied weight appears once, with both paths
        losses.adamw       [10]    the loss before each of ten AdamW steps on the same two rows
        greedy.0           int64 [8]  the greedy continuation of row 0, weights not updated

Every row is run alone, unpadded, without a cache, in float32 with eager attention on one thread.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

FAMILIES = Path(__file__).resolve().parent.parent / "crates/lapidary/tests/golden/families"

VOCAB = 97
ROW_LENGTHS = (12, 9)
GREEDY_TOKENS = 8
MAX_FOLDER_BYTES = 150_000

# Fields common to all. No pad token: `nn.Embedding` drops the gradient of that row.
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=1000.0,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
LLAMA = dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], hidden_act="silu")
LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    # With theta 100 and head_dim 8 the wavelengths are 6.3, 20, 63 and 199 positions:
    # one is kept, one lies on the ramp, two are divided in full.
    original_max_position_embeddings=32,
)
QWEN2 = dict(
    COMMON,
    model_type="qwen2",
    architectures=["Qwen2ForCausalLM"],
    hidden_act="silu",
    tie_word_embeddings=True,
    sliding_window=4,
    max_window_layers=1,
)
GEMMA = dict(
    COMMON,
    head_dim=8,
    hidden_activation="gelu_pytorch_tanh",
    tie_word_embeddings=True,
    query_pre_attn_scalar=10,
    sliding_window=4,
    attention_bias=False,
)

# Per family: the published spelling of its config, and the changes that must move the logits, so
# that no feature is in the golden values by name only.
CONFIGS = {
    "llama": (dict(LLAMA, num_key_value_heads=4), [dict(rope_theta=10.0)]),
    "llama3": (
        dict(LLAMA, head_dim=8, rope_theta=100.0, rope_scaling=LLAMA3_ROPE, eos_token_id=[2, 3]),
        [dict(rope_scaling=None), dict(rope_scaling=dict(LLAMA3_ROPE, high_freq_factor=2.0))],
    ),
    "llama_linear": (
        dict(LLAMA, rope_scaling=dict(rope_type="linear", factor=4.0)),
        [dict(rope_scaling=None)],
    ),
    "llama_bias": (dict(LLAMA, attention_bias=True, mlp_bias=True), []),
    "smollm2": (dict(LLAMA, tie_word_embeddings=True), []),
    "mistral": (
        dict(
            COMMON,
            model_type="mistral",
            architectures=["MistralForCausalLM"],
            hidden_act="silu",
            head_dim=8,
            sliding_window=4,
        ),
        [dict(sliding_window=None), dict(sliding_window=5)],
    ),
    # The window is configured and switched off, as in the published checkpoints.
    "qwen2": (dict(QWEN2, use_sliding_window=False), [dict(use_sliding_window=True)]),
    # Layers from max_window_layers on have the window.
    "qwen2_sliding": (dict(QWEN2, use_sliding_window=True), [dict(use_sliding_window=False)]),
    "qwen3": (
        dict(
            COMMON,
            model_type="qwen3",
            architectures=["Qwen3ForCausalLM"],
            hidden_act="silu",
            head_dim=8,
            attention_bias=False,
            tie_word_embeddings=True,
            use_sliding_window=False,
            sliding_window=None,
            max_window_layers=2,
        ),
        [],
    ),
    "gemma2": (
        dict(
            GEMMA,
            model_type="gemma2",
            architectures=["Gemma2ForCausalLM"],
            attn_logit_softcapping=2.0,
            final_logit_softcapping=4.0,
        ),
        [
            dict(attn_logit_softcapping=None),
            dict(final_logit_softcapping=None),
            dict(query_pre_attn_scalar=8),
            dict(sliding_window=64),
        ],
    ),
    "gemma3": (
        dict(
            GEMMA,
            model_type="gemma3_text",
            architectures=["Gemma3ForCausalLM"],
            intermediate_size=24,
            num_hidden_layers=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            sliding_window_pattern=3,
            rope_local_base_freq=10.0,
            rope_scaling=dict(rope_type="linear", factor=2.0),
        ),
        [
            dict(query_pre_attn_scalar=8),
            dict(sliding_window=64),
            dict(rope_local_base_freq=20.0),
            dict(rope_theta=100.0),
            dict(rope_scaling=None),
        ],
    ),
    "smollm3": (
        dict(
            COMMON,
            model_type="smollm3",
            architectures=["SmolLM3ForCausalLM"],
            hidden_act="silu",
            tie_word_embeddings=True,
            attention_bias=False,
            mlp_bias=False,
            no_rope_layers=[1, 0],
            no_rope_layer_interval=2,
            use_sliding_window=False,
            sliding_window=None,
        ),
        [dict(no_rope_layers=[1, 1]), dict(no_rope_layers=[0, 1])],
    ),
    "llama_bf16_sharded": (dict(LLAMA, torch_dtype="bfloat16"), []),
}


def build(published, dtype=torch.float32):
    """A model with the given published config; its weights are whatever the library drew."""
    fields = {key: value for key, value in published.items() if key != "torch_dtype"}
    # The library edits nested values in place.
    config = AutoConfig.for_model(**json.loads(json.dumps(fields)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    return model.eval()


def randomise(model, seed):
    """Matrices of std 0.3, embeddings of std 0.5, norms around their default, biases of std 0.3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_((0.5 if "embed_tokens" in name else 0.3) * noise)


def rows_of(seed):
    generator = torch.Generator().manual_seed(1000 + seed)
    return [torch.randint(4, VOCAB, (length,), generator=generator) for length in ROW_LENGTHS]


def first(output):
    return output[0] if isinstance(output, tuple) else output


def forward(model, ids):
    """Logits [T, V], the state after the last norm [T, D], and the residual stream at L + 1 places."""
    hidden = []
    layers = model.model.layers
    hooks = [layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: hidden.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )]
    hooks += [layer.register_forward_hook(lambda _, __, out: hidden.append(first(out))) for layer in layers]
    final = []
    hooks.append(model.model.norm.register_forward_hook(lambda _, __, out: final.append(out)))
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    assert len(hidden) == len(layers) + 1 and len(final) == 1
    return logits, final[0][0], [state[0] for state in hidden]


def loss_of(model, rows):
    """Cross-entropy summed over the next-token targets of all rows, divided by their count."""
    total, count = 0.0, 0
    for ids in rows:
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
        count += len(ids) - 1
    return total / count


@torch.no_grad()
def greedy(model, ids):
    """The continuation, and the smallest lead of a chosen token over the runner-up."""
    margin = float("inf")
    for _ in range(GREEDY_TOKENS):
        best = model(input_ids=ids[None], use_cache=False).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        ids = torch.cat([ids, best.indices[:1]])
    return ids[-GREEDY_TOKENS:], margin


def adamw_losses(model, rows):
    """The loss before each step; changes the weights."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False
    )
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = loss_of(model, rows)
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
    return losses


def golden_values(model, rows):
    """Everything `golden.safetensors` holds. Changes the weights at the end."""
    golden = {}
    with torch.no_grad():
        for r, ids in enumerate(rows):
            logits, final, hidden = forward(model, ids)
            golden[f"ids.{r}"] = ids
            golden[f"logits.{r}"] = logits
            golden[f"final.{r}"] = final
            golden.update({f"hidden.{r}.{i}": state for i, state in enumerate(hidden)})
    golden["greedy.0"], _ = greedy(model, rows[0])

    model.zero_grad()
    loss = loss_of(model, rows)
    loss.backward()
    golden["loss"] = loss.detach()[None]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-6, f"{name} has no gradient"
        golden[f"grad.{name}"] = parameter.grad.clone()

    losses = adamw_losses(model, rows)
    assert all(later < earlier for earlier, later in zip(losses, losses[1:])), losses
    golden["losses.adamw"] = torch.tensor(losses)
    return {name: value.detach().clone().contiguous() for name, value in golden.items()}


def check_features(name, published, changes, model, rows):
    """Each change of the config moves the logits of the same weights."""
    with torch.no_grad():
        logits = forward(model, rows[0])[0]
        for change in changes:
            other = build(dict(published, **change))
            other.load_state_dict(model.state_dict())
            moved = (forward(other, rows[0])[0] - logits).abs().max().item()
            assert moved > 1e-3, f"{name}: {change} moves the logits by {moved} only"


def check_saved(name, folder, rows, logits):
    """What was saved, under either spelling of the config, gives the same logits."""
    for spelling in ("config.json", "config.published.json"):
        config = json.loads((folder / spelling).read_text())
        config = AutoConfig.for_model(**config)
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, config=config, attn_implementation="eager", dtype=torch.float32
        ).eval()
        with torch.no_grad():
            assert torch.equal(forward(loaded, rows[0])[0], logits), f"{name}: {spelling}"


def suitable(published, seed):
    """A model and rows whose greedy continuation has no near ties and no end token, or None."""
    model = build(published)
    randomise(model, seed)
    if stores_bf16(published):
        # Only the parameters: `model.to` would round the RoPE frequencies as well.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    rows = rows_of(seed)
    tokens, margin = greedy(model, rows[0])
    ends = published["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    return (model, rows) if margin > 0.02 and not set(tokens.tolist()) & set(ends) else None


def stores_bf16(published):
    return published.get("torch_dtype") == "bfloat16"


def write_family(name):
    published, changes = CONFIGS[name]
    model, rows = next(filter(None, (suitable(published, seed) for seed in range(100))))
    folder = FAMILIES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    if stores_bf16(published):
        stored = build(published, torch.bfloat16)
        stored.load_state_dict(model.state_dict())
        stored.save_pretrained(folder, max_shard_size=18_000)
        assert len(list(folder.glob("model-*-of-00002.safetensors"))) == 2
    else:
        model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "config.published.json").write_text(json.dumps(published, indent=2) + "\n")

    check_features(name, published, changes, model, rows)
    golden = golden_values(model, rows)
    check_saved(name, folder, rows, golden["logits.0"])
    save_file(golden, folder / "golden.safetensors")
    for path in folder.iterdir():
        path.chmod(0o644)

    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < MAX_FOLDER_BYTES, f"{name}: {size} bytes"
    losses = golden["losses.adamw"].tolist()
    print(f"{name}: {size} bytes, loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
          f"logit std {golden['logits.0'].std().item():.2f}")


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()
    for name in sys.argv[1:] or CONFIGS:
        write_family(name)


if __name__ == "__main__":
    main()
