"""The jobs of a GPU benchmark by PyTorch in bf16 at its best: compiled, with CUDA graphs where kernels are short.

usage: gpu_peers.py JOB, with JOB as JSON; each measured repetition prints a line of JSON. Of every job: "hf" (a directory
with config.json and model.safetensors of a Llama; without it random weights in the shape of SmolLM2-135M), "repeat",
"device" ("cuda"), "compile" (true), "options" of torch.compile in place of a work's own. Works, and what an item is:
{"work":"train","scope":"special","rows":64,"tokens":32,"special":6}: a contrastive GEM step; a text. The low-rank update
    acts on [E]s, or with the scope "all" on every position. "split":true, for "special" alone, runs texts with no gradients,
    then [E]s on their keys and values, to the same end. "gqa":true: masked attention groups heads, else repeats keys, values.
{"work":"embed","num_texts":1000,"min_tokens":8,"max_tokens":500,"batch_tokens":16384}: means over texts, which are sorted
    and padded beforehand; a token. "texts_tokens":[12,40] are the lengths themselves.
{"work":"decode","prompt_tokens":512,"new_tokens":256,"rows":1}: greedy; a generated token.
{"work":"prefill","tokens":2048}: to the last token's logits; a token. {"work":"peak"}: plain products and copies.
"""
import json, statistics, sys, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from safetensors.torch import load_file

SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152, "rms_norm_eps": 1e-5,
         "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "rope_theta": 1e5}
MAPS = {"qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "o": ["self_attn.o_proj"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"], "down": ["mlp.down_proj"]}
RANK, ALPHA, CUDA_GRAPHS = 16, 32, {"triton.cudagraphs": True}  # what mode="reduce-overhead" stands for
causal = lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Llama(nn.Module):
    """Frozen; the weights of products that share their input are one matrix."""
    def __init__(self, hf):
        super().__init__()
        c = json.load(open(f"{hf}/config.json")) if hf else SHAPE
        held = load_file(f"{hf}/model.safetensors") if hf else None
        random = lambda *shape: torch.randn(shape) * 0.02 + (len(shape) == 1)
        given = lambda name, *shape: held[f"model.{name}.weight"].view(shape) if hf else random(*shape)
        read = lambda name, *shape: given(name, *shape).to(DEVICE, torch.bfloat16)
        d, wide, self.layers, self.vocabulary, self.eps = (c[name] for name in list(SHAPE)[:5])
        self.heads, self.kv, theta = c["num_attention_heads"], c["num_key_value_heads"], c.get("rope_theta")
        self.head_dim, theta = c.get("head_dim") or d // self.heads, theta or c["rope_parameters"]["rope_theta"]
        q, kv = self.heads * self.head_dim, self.kv * self.head_dim
        self.outs = {"qkv": [q, kv, kv], "o": [d], "gate_up": [wide, wide], "down": [d]}
        self.ins = {"qkv": d, "o": q, "gate_up": d, "down": wide}
        whole = lambda i, m: [read(f"layers.{i}.{n}", out, self.ins[m]) for n, out in zip(MAPS[m], self.outs[m])]
        self.maps = nn.ModuleDict({m: nn.ParameterList(torch.cat(whole(i, m)) for i in range(self.layers)) for m in MAPS})
        norms = [f"layers.{i}.{n}" for i in range(self.layers) for n in ("input_layernorm", "post_attention_layernorm")]
        self.norms = nn.ParameterList(read(name, d) for name in norms + ["norm"])
        self.embedding = nn.Parameter(read("embed_tokens", self.vocabulary, d))
        self.frequencies = nn.Parameter(theta ** (-torch.arange(0, self.head_dim, 2, device=DEVICE) / self.head_dim))
        self.requires_grad_(False)

    def norm(self, x, i):
        return F.rms_norm(x.float(), x.shape[-1:], self.norms[i].float(), self.eps)

    def forward(self, x, positions, attend, update=None):
        """States ahead of the final norm, of token ids or of embeddings, at positions [rows or 1, length]. `attend` takes
        layer, q, k and v as [rows, heads, length, head_dim]; `update` takes map, layer and input and gives what to add."""
        x = x if x.is_floating_point() else F.embedding(x, self.embedding)
        angles = (positions[..., None] * self.frequencies).repeat(1, 1, 2)[:, :, None]
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        rotate = lambda x: x * cos + torch.cat([-x[..., self.head_dim // 2 :], x[..., : self.head_dim // 2]], -1) * sin

        def product(m, i, x):
            y = F.linear(x.bfloat16(), self.maps[m][i])
            return y if update is None else y + update(m, i, x.bfloat16())
        for i in range(self.layers):
            qkv = product("qkv", i, self.norm(x, 2 * i)).unflatten(-1, (-1, self.head_dim))
            q, k = rotate(qkv[:, :, : -self.kv]).split([self.heads, self.kv], 2)
            seen = attend(i, *(t.transpose(1, 2) for t in (q, k, qkv[:, :, -self.kv :])))
            x = x + product("o", i, seen.transpose(1, 2).flatten(2))
            gate, up = product("gate_up", i, self.norm(x, 2 * i + 1)).chunk(2, -1)
            x = x + product("down", i, F.silu(gate) * up)
        return x

    def logits(self, x):
        return F.linear(self.norm(x, -1).bfloat16(), self.embedding)


class Adapter(nn.Module):
    """LoRA and the embeddings of [E]s, in f32. What layers have alike is one parameter: few for the optimiser to visit."""
    def __init__(self, model, special):
        super().__init__()
        uniform = lambda *shape: (torch.rand(shape, device=DEVICE) * 2 - 1) / shape[-1] ** 0.5
        zeros = lambda outs: nn.ParameterList(torch.zeros(model.layers, out, RANK, device=DEVICE) for out in outs)
        self.a = nn.ParameterDict({m: uniform(model.layers, RANK * len(MAPS[m]), model.ins[m]) for m in MAPS})
        self.b = nn.ModuleDict({m: zeros(model.outs[m]) for m in MAPS})
        self.special = nn.Parameter(model.embedding[100 : 100 + special].float())

    def update(self, last):
        """The decoder's `update`, on so many positions at the end of each row."""
        a = {m: weight.bfloat16().unbind() for m, weight in self.a.items()}
        b = {m: [(weight * (ALPHA / RANK)).bfloat16().unbind() for weight in weights] for m, weights in self.b.items()}

        def update(m, i, x):
            low = F.linear(x[:, -last:], a[m][i]).split(RANK, -1)
            added = torch.cat([F.linear(part, weight[i]) for part, weight in zip(low, b[m])], -1)
            return F.pad(added, (0, 0, x.shape[1] - last, 0))
        return update


def special_states(job, model, adapter, ids, lengths):
    """[rows, k, d]. Rows lie as text, padding, [E]s, so that [E]s have the same place in all rows and a slice gathers them;
    mask and positions are those of text and [E]s without a gap."""
    (rows, width), k, gqa = ids.shape, job["special"], job.get("gqa", False)
    place = torch.arange(width + k, device=DEVICE)
    is_text, query, lengths = place < width, place[:, None], lengths[:, None]
    mask = torch.where(is_text, (place <= query) & (place < lengths)[:, None], place == query)[:, None]
    positions = torch.where(is_text, place, place - width + lengths)
    special = adapter.special.bfloat16().expand(rows, k, -1)

    def masked(q, k, v, mask):
        # Without `gqa` the memory-efficient kernel applies: it takes a mask, but no grouped heads.
        k, v = (t if gqa else t.repeat_interleave(model.heads // model.kv, 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)
    if job.get("split"):
        kept = []
        with torch.no_grad():
            model(ids, place[None, :width], lambda i, *qkv: kept.append(qkv[1:]) or causal(i, *qkv))
        attend = lambda i, q, *kv: masked(q, *(torch.cat(pair, 2) for pair in zip(kept[i], kv)), mask[:, :, width:])
        return model(special, positions[:, width:], attend, adapter.update(k))
    x = torch.cat([F.embedding(ids, model.embedding), special], 1)
    update = adapter.update(k if job["scope"] == "special" else width + k)
    return model(x, positions, lambda _, q, k, v: masked(q, k, v, mask), update)[:, width:]


def train(job, model):
    rng, rows, tokens, k = np.random.default_rng(0), job["rows"], job["tokens"], job["special"]
    adapter = Adapter(model, k)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, weight_decay=0.0, fused=DEVICE == "cuda")

    def contrastive(ids, lengths):
        pooled = model.norm(special_states(job, model, adapter, ids, lengths), -1).mean(1)
        anchors, positives = F.normalize(pooled, dim=-1).chunk(2)
        return F.cross_entropy(anchors @ positives.T / 0.05, torch.arange(rows, device=DEVICE))
    loss = compiled(job, contrastive, CUDA_GRAPHS)

    def step():
        # Texts and what dropout leaves of them. With [E]s, rows are a multiple of 8; beyond a length all is padding.
        texts, keep = rng.integers(100, model.vocabulary, (rows, tokens)), rng.random((rows, tokens)) >= 0.2
        keep[~keep.any(1), 0] = True
        left = np.take_along_axis(texts, np.argsort(~keep, 1, kind="stable"), 1)
        ids = np.pad(np.concatenate([texts, left]), ((0, 0), (0, -(tokens + k) % 8)))
        lengths = np.concatenate([np.full(rows, tokens), keep.sum(1)])
        loss(upload(ids), upload(lengths)).backward()
        nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return rows, lengths.sum() + 2 * rows * k, 0
    repeat(job, model, step)


@torch.inference_mode()
def embed(job, model):
    rng, batches, padded = np.random.default_rng(0), [[]], lambda length: -(-length // 16) * 16
    lengths = job.get("texts_tokens") or rng.integers(job["min_tokens"], job["max_tokens"] + 1, job["num_texts"])
    for length in sorted(lengths):
        if batches[-1] and (len(batches[-1]) + 1) * padded(length) > job["batch_tokens"]:
            batches.append([])
        batches[-1].append(length)
    texts = [rng.integers(100, model.vocabulary, (len(batch), padded(batch[-1]))) for batch in batches]

    def pooled(ids, lengths):
        place = torch.arange(ids.shape[1], device=DEVICE)[None]
        states = model.norm(model(ids, place, causal), -1) * (place < lengths[:, None])[..., None]
        return F.normalize(states.sum(1), dim=-1)
    run = compiled(job, pooled, {}, dynamic=True)

    def work():
        torch.cat([run(upload(ids), upload(np.array(batch))) for ids, batch in zip(texts, batches)]).cpu()
        return sum(lengths), sum(lengths), 0
    repeat(job, model, work, warm=2)


def decode(job, model):
    rows, length, new_tokens = job["rows"], job["prompt_tokens"], job["new_tokens"]
    size = -(-(length + new_tokens) // 64) * 64
    empty = lambda: torch.zeros(rows, model.kv, size, model.head_dim, device=DEVICE, dtype=torch.bfloat16)
    keys, values = ([empty() for _ in range(model.layers)] for _ in range(2))
    prompt = torch.randint(100, model.vocabulary, (rows, length), device=DEVICE)
    token, position, written = prompt[:, -1:].clone(), prompt.new_zeros(1), prompt.new_zeros(rows, size)

    def prepare():
        keep = lambda i, _, *kv: [to[i][:, :, : length - 1].copy_(own) for to, own in zip((keys, values), kv)]
        model(prompt[:, :-1], torch.arange(length - 1, device=DEVICE)[None], lambda *iqkv: keep(*iqkv) and causal(*iqkv))
        token.copy_(prompt[:, -1:]), position.fill_(length - 1)

    def attend(i, q, k, v):
        # Written out, because the compiler's own kernels suit a single query better than those of SDPA.
        keys[i][:, :, position], values[i][:, :, position] = k, v
        scores = (q.reshape(rows, model.kv, -1, model.head_dim) @ keys[i].mT).float() * model.head_dim**-0.5
        scores = scores.masked_fill(torch.arange(size, device=DEVICE) > position, -torch.inf)
        return (scores.softmax(-1).bfloat16() @ values[i]).view(q.shape)

    def step():
        token.copy_(model.logits(model(token, position[None], attend)).argmax(-1))
        position.add_(1)
        written[:, position] = token
    advance = compiled(job, step, {"coordinate_descent_tuning": True})
    if DEVICE == "cuda" and job.get("compile", True):
        [advance() for _ in range(3)]
        graph = torch.cuda.CUDAGraph()  # of the whole step, which spares it the checks ahead of compiled code too
        with torch.cuda.graph(graph):
            advance()
        advance = graph.replay

    def work():
        [advance() for _ in range(new_tokens)]
        written[:, length : length + new_tokens].cpu()
        return [rows * new_tokens] * 3
    repeat(job, model, work, prepare)


def prefill(job, model):
    ids = torch.randint(100, model.vocabulary, (1, job["tokens"]), device=DEVICE)
    place = torch.arange(job["tokens"], device=DEVICE)[None]
    run = compiled(job, lambda ids: model.logits(model(ids, place, causal)[:, -1:]), CUDA_GRAPHS)
    repeat(job, model, lambda: (job["tokens"], job["tokens"], len(run(ids))))


def peak():
    def tell(what, unit, amount, work):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(14)]
        [(work(), event.record()) for event in events]
        torch.cuda.synchronize()
        millis = statistics.median(start.elapsed_time(end) for start, end in zip(events[3:], events[4:]))
        print(json.dumps({"what": what, unit: amount / millis / 1e9}))
    a, b, c = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    tell("bf16 product 8192^3", "tflops", 2 * 8192**3, lambda: torch.mm(a, b, out=c))
    source, target = (torch.zeros(2**31, device=DEVICE, dtype=torch.uint8) for _ in range(2))
    tell("copy", "tb_per_s", 2 * 2**31, lambda: target.copy_(source))


def compiled(job, function, options, dynamic=None):
    options, disable = job.get("options", options), not job.get("compile", True)
    return torch.compile(function, fullgraph=True, dynamic=dynamic, options=options, disable=disable)


def upload(array):
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(DEVICE, non_blocking=True) if DEVICE == "cuda" else tensor


def repeat(job, model, work, prepare=lambda: None, warm=3):
    """`work` gives how many items, and tokens and logits, whose operations are counted as `flops` of the workload does."""
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    layers = sum(weight.numel() for weights in model.maps.values() for weight in weights)
    for number in range(warm + job["repeat"]):
        prepare(), synchronize(), torch.compiler.cudagraph_mark_step_begin()
        start = time.perf_counter()
        items, tokens, logits = map(int, work())
        synchronize()
        wall, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else 0
        flops = 2.0 * (tokens * layers + logits * model.embedding.numel())
        if number >= warm:
            print(json.dumps({"items": items, "wall_secs": wall, "gpu_peak_mib": peak, "flops": flops}), flush=True)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    DEVICE, works = job.get("device", "cuda"), {"train": train, "embed": embed, "decode": decode, "prefill": prefill}
    torch.manual_seed(0)
    peak() if job["work"] == "peak" else works[job["work"]](job, Llama(job.get("hf")))
