"""The jobs of a GPU benchmark by PyTorch in bf16 at its best: compiled, with CUDA graphs where kernels are short.

usage: gpu_peers.py JOB, with JOB as JSON; each measured repetition prints a line of JSON. Of every job: "hf" (a directory
with config.json and model.safetensors of a Llama; without it random weights in the shape of SmolLM2-135M), "repeat",
"device" ("cuda"), "compile" (true), "options" of torch.compile in place of a work's own. Works, and what an item is:
{"work":"train","scope":"special","rows":64,"tokens":32,"special":6}: a contrastive GEM step; a text. The low-rank update
    acts on [E]s, or with the scope "all" on every position. "split":true, for "special" alone, runs texts with no gradients,
    then [E]s on their keys and values, to the same end. "gqa":true: masked attention groups heads, else repeats keys, values.
{"work":"recipe","rows":"rows.jsonl","special":10,"pieces":2}: GEM training with scope "special" on rows that the example
    `workload` wrote for a recipe (`[view, text, suffix]`, a line for each step), contrastive and next-token losses, with
    "alpha", "temperature", "rank", "lora_alpha", "learning_rate" and the ids of "special_ids" that [E]s begin as; one
    repetition is the whole run; a row of text. Rows are padded beforehand: those with a suffix to the longest of them, the
    others, sorted by length, in so many pieces to the longest of each.
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
CUDA_GRAPHS = {"triton.cudagraphs": True}  # what mode="reduce-overhead" stands for
causal = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def new_block(heads, kv, head_dim, eps):
    """A layer as a function of tensors, so that compiled once it serves all layers. `attend` takes q, k and v as [rows,
    heads, length, head_dim], and `extra`; `low` has a low-rank update, A and Bs of each map, for the last positions."""
    norm = lambda x, weight: F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps)

    def block(x, cos, sin, weights, norms, attend, extra, low=None, last=0):
        rotate = lambda x: x * cos + torch.cat([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], -1) * sin

        def product(m, x):
            y = F.linear(x.bfloat16(), weights[m])
            if low is None:
                return y
            a, bs = low[m]
            down = F.linear(x.bfloat16()[:, -last:], a).split(RANK, -1)
            added = torch.cat([F.linear(part, b) for part, b in zip(down, bs)], -1)
            return y + F.pad(added, (0, 0, x.shape[1] - last, 0))
        qkv = product("qkv", norm(x, norms[0])).unflatten(-1, (-1, head_dim))
        q, k = rotate(qkv[:, :, :-kv]).split([heads, kv], 2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, qkv[:, :, -kv:]))
        x = x + product("o", attend(q, k, v, *extra).transpose(1, 2).flatten(2))
        gate, up = product("gate_up", norm(x, norms[1])).chunk(2, -1)
        return x + product("down", F.silu(gate) * up), k, v
    return block


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
        self.block = new_block(self.heads, self.kv, self.head_dim, self.eps)
        self.requires_grad_(False)

    def norm(self, x, i):
        return F.rms_norm(x.float(), x.shape[-1:], self.norms[i].float(), self.eps)

    def forward(self, x, positions, attend, extra=lambda _: (), low=lambda _: (), block=None):
        """States ahead of the final norm, of token ids or of embeddings, at positions [rows or 1, length], and keys and
        values of each layer. `extra` and `low` give of a layer what `new_block` takes."""
        x = x if x.is_floating_point() else F.embedding(x, self.embedding)
        angles = (positions[..., None] * self.frequencies).repeat(1, 1, 2)[:, :, None]
        cos, sin, kept = angles.cos().bfloat16(), angles.sin().bfloat16(), []
        for i in range(self.layers):
            weights, norms = {m: maps[i] for m, maps in self.maps.items()}, (self.norms[2 * i], self.norms[2 * i + 1])
            x, *kv = (block or self.block)(x, cos, sin, weights, norms, attend, extra(i), *low(i))
            kept.append(kv)
        return x, kept

    def logits(self, x):
        return F.linear(self.norm(x, -1).bfloat16(), self.embedding)


class Adapter(nn.Module):
    """LoRA and the embeddings of [E]s, in f32. What layers have alike is one parameter: few for the optimiser to visit."""
    def __init__(self, model, ids):
        super().__init__()
        uniform = lambda *shape: (torch.rand(shape, device=DEVICE) * 2 - 1) / shape[-1] ** 0.5
        zeros = lambda outs: nn.ParameterList(torch.zeros(model.layers, out, RANK, device=DEVICE) for out in outs)
        self.a = nn.ParameterDict({m: uniform(model.layers, RANK * len(MAPS[m]), model.ins[m]) for m in MAPS})
        self.b = nn.ModuleDict({m: zeros(model.outs[m]) for m in MAPS})
        self.special = nn.Parameter(model.embedding[ids].float())

    def low(self, last):
        """The decoder's `low`, on so many positions at the end of each row."""
        a = {m: weight.bfloat16().unbind() for m, weight in self.a.items()}
        b = {m: [(weight * (ALPHA / RANK)).bfloat16().unbind() for weight in weights] for m, weights in self.b.items()}
        return lambda i: ({m: (a[m][i], tuple(weight[i] for weight in b[m])) for m in MAPS}, last)


def masked(q, k, v, mask, groups):
    # With groups the memory-efficient kernel applies: it takes a mask, but no grouped heads.
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v)) if groups else (k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=not groups)


def behind(q, k, v, past, mask, groups):
    return masked(q, *(torch.cat(pair, 2) for pair in zip(past, (k, v))), mask, groups)


def special_states(job, model, adapter, block, ids, lengths):
    """[rows, k, d]. Rows lie as text, padding, [E]s, so that [E]s have the same place in all rows and a slice gathers them;
    mask and positions are those of text and [E]s without a gap."""
    (rows, width), k, groups = ids.shape, job["special"], 0 if job.get("gqa") else model.heads // model.kv
    place = torch.arange(width + k, device=DEVICE)
    is_text, query, lengths = place < width, place[:, None], lengths[:, None]
    mask = torch.where(is_text, (place <= query) & (place < lengths)[:, None], place == query)[:, None]
    positions = torch.where(is_text, place, place - width + lengths)
    special = adapter.special.bfloat16().expand(rows, k, -1)
    if job.get("split"):
        with torch.no_grad():
            kept = model(ids, place[None, :width], causal, block=block)[1]
        seen, low = mask[:, :, width:].contiguous(), adapter.low(k)
        return model(special, positions[:, width:], behind, lambda i: (kept[i], seen, groups), low, block)[0]
    x = torch.cat([F.embedding(ids, model.embedding), special], 1)
    low = adapter.low(k if job["scope"] == "special" else width + k)
    return model(x, positions, masked, lambda _: (mask, groups), low, block)[0][:, width:]


def optimiser(job, adapter):
    on_gpu = DEVICE == "cuda"
    given = {"lr": job.get("learning_rate", 1e-4), "weight_decay": 0.0}
    return torch.optim.AdamW(adapter.parameters(), **given, fused=on_gpu, capturable=on_gpu)


def compiled_block(job, model):
    # Layers are compiled as one function: thirty of them in a piece take many minutes.
    torch._dynamo.config.automatic_dynamic_shapes = False
    return torch.compile(model.block, fullgraph=True, dynamic=False) if job.get("compile", True) else model.block


def captured(job, update):
    """An update as a CUDA graph of the whole step: the host does nothing but fill its inputs."""
    if DEVICE != "cuda" or not job.get("compile", True):
        return update
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        [update() for _ in range(3)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay


def train(job, model):
    rng, rows, tokens, k = np.random.default_rng(0), job["rows"], job["tokens"], job["special"]
    adapter, compiles = Adapter(model, list(range(100, 100 + k))), job.get("compile", True)
    optimizer, block = optimiser(job, adapter), compiled_block(job, model)

    def of_states(states):
        anchors, positives = F.normalize(model.norm(states, -1).mean(1), dim=-1).chunk(2)
        return F.cross_entropy(anchors @ positives.T / 0.05, torch.arange(rows, device=DEVICE))
    loss, width = torch.compile(of_states, disable=not compiles), tokens + (-(tokens + k) % 8)
    ids = torch.full((2 * rows, width), 100, device=DEVICE)
    lengths = torch.full((2 * rows,), tokens, device=DEVICE)

    def update():
        optimizer.zero_grad(set_to_none=True)
        loss(special_states(job, model, adapter, block, ids, lengths)).backward()
        nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
    update = captured(job, update)

    def step():
        # Texts and what dropout leaves of them. With [E]s, rows are a multiple of 8; beyond a length all is padding.
        texts, keep = rng.integers(100, model.vocabulary, (rows, tokens)), rng.random((rows, tokens)) >= 0.2
        keep[~keep.any(1), 0] = True
        left = np.take_along_axis(texts, np.argsort(~keep, 1, kind="stable"), 1)
        given = np.concatenate([np.full(rows, tokens), keep.sum(1)])
        ids.copy_(upload(np.pad(np.concatenate([texts, left]), ((0, 0), (0, width - tokens)))))
        lengths.copy_(upload(given))
        update()
        return rows, given.sum() + 2 * rows * k, 0
    repeat(job, model, step)


class Piece:
    """Rows of one padded shape, of which each step has others: text, [suffix], [E]s."""
    def __init__(self, steps, k):
        up = lambda x, of: -(-x // of) * of
        self.k, self.rows = k, up(max(map(len, steps)), 8)
        self.suffix = up(max((len(row[1]) for step in steps for row in step), default=0), 8)
        text = max((len(row[0]) for step in steps for row in step), default=1)
        self.width = text + (-(text + self.suffix + k) % 8)
        host = {"ids": self.width, "suffix": self.suffix, "length": 1}
        self.held = {name: [] for name in host}
        for step in steps:
            for name, width in host.items():
                array = np.full((self.rows, width), 100)
                for i, (text, suffix, _) in enumerate(step):
                    given = {"ids": text, "suffix": suffix, "length": [len(text)]}[name]
                    array[i, : len(given)] = given
                array[len(step) :] = 1 if name == "length" else 100
                self.held[name].append(pinned(array))
        self.inputs = {name: held[0].to(DEVICE) for name, held in self.held.items()}

    def fill(self, step):
        [self.inputs[name].copy_(held[step], non_blocking=True) for name, held in self.held.items()]

    def states(self, model, adapter, block):
        """[rows, suffix + k, d]: [E]s see the text and themselves, a suffix all [E]s and what it has of itself."""
        ids, lengths, k, size = self.inputs["ids"], self.inputs["length"], self.k, self.suffix
        place = torch.arange(self.width, device=DEVICE)
        with torch.no_grad():
            kept = model(ids, place[None], causal, block=block)[1]
        at = torch.arange(size + k, device=DEVICE)
        query, key = at[:, None], at[None]
        own = torch.where(query < size, (key <= query) | (key >= size), key == query)
        text = (place < lengths)[:, None] & (query >= size)
        seen = torch.cat([text, own.expand(len(ids), -1, -1)], -1)[:, None].contiguous()
        positions = lengths + torch.where(at < size, at + k, at - size)
        x = adapter.special.bfloat16().expand(len(ids), k, -1)
        if size:
            x = torch.cat([F.embedding(self.inputs["suffix"], model.embedding), x], 1)
        low, groups = adapter.low(k), model.heads // model.kv
        return model(x, positions, behind, lambda i: (kept[i], seen, groups), low, block)[0]


def laid_out(steps, texts, num_pieces, k):
    """Pieces, and of each step where vectors lie among their rows, and labels with the places that they are of."""
    split = []  # of each step rows with a suffix, and the others by length: text, suffix, place among vectors
    for rows in steps:
        counts, placed = [0, 0], []
        for view, text, suffix in rows:
            placed.append((text, suffix, view * texts + counts[view]))
            counts[view] += 1
        plain = sorted((row for row in placed if not row[1]), key=lambda row: len(row[0]))
        part = -(-len(plain) // num_pieces)
        split.append([[row for row in placed if row[1]], *(plain[i * part : (i + 1) * part] for i in range(num_pieces))])
    pieces = [Piece(rows, k) for rows in zip(*split)]
    gather, labels, places, each = [], [], [], pieces[0].suffix + k
    for step in split:
        place = [None] * (2 * texts)
        for rows, first in zip(step, np.cumsum([0] + [piece.rows for piece in pieces])):
            for i, row in enumerate(rows):
                place[row[2]] = first + i
        gather.append(place)
        # The last [E] predicts the suffix's first token, and each of its tokens the next.
        whole = enumerate(step[0])
        found = [(i * each + (j - 1 if j else each - 1), token) for i, row in whole for j, token in enumerate(row[1])]
        places.append([at for at, _ in found])
        labels.append([token for _, token in found])
    return pieces, gather, places, labels


def recipe(job, model):
    k, steps = job["special"], [json.loads(line) for line in open(job["rows"])]
    texts = sum(row[0] == 0 for row in steps[0])
    pieces, gather, places, labels = laid_out(steps, texts, job["pieces"], k)
    longest = -(-max(map(len, labels)) // 64) * 64
    padded = lambda lists, value: [np.array(list(one) + [value] * (longest - len(one))) for one in lists]
    held = {"gather": list(map(np.array, gather)), "places": padded(places, 0), "labels": padded(labels, -100)}
    held = {name: [pinned(array) for array in arrays] for name, arrays in held.items()}
    inputs = {name: arrays[0].to(DEVICE) for name, arrays in held.items()}
    adapter, compiles = Adapter(model, job.get("special_ids") or list(range(100, 100 + k))), job.get("compile", True)
    optimizer, block = optimiser(job, adapter), compiled_block(job, model)
    alpha, temperature = job.get("alpha", 0.8), job.get("temperature", 0.1)

    def of_states(specials, suffixes, inputs):
        z = F.normalize(model.norm(torch.cat(specials), -1).mean(1)[inputs["gather"]], dim=-1)
        anchors, positives = z.chunk(2)
        contrastive = F.cross_entropy(anchors @ positives.T / temperature, torch.arange(texts, device=DEVICE))
        logits = model.logits(suffixes.flatten(0, 1)[inputs["places"]])
        return alpha * contrastive + (1 - alpha) * F.cross_entropy(logits.float(), inputs["labels"]), contrastive
    losses = torch.compile(of_states, disable=not compiles)
    told = torch.zeros(2, device=DEVICE)

    def update():
        optimizer.zero_grad(set_to_none=True)
        states = [piece.states(model, adapter, block) for piece in pieces]
        loss, contrastive = losses([x[:, -k:] for x in states], states[0], inputs)
        loss.backward()
        told.copy_(torch.stack([loss, contrastive]).detach())
        nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
    if job.get("tell"):
        update()
        print(json.dumps({"first_loss": told[0].item(), "first_contrastive": told[1].item()}), flush=True)
    update = captured(job, update)

    def work():
        for step in range(len(steps)):
            [piece.fill(step) for piece in pieces]
            [inputs[name].copy_(arrays[step], non_blocking=True) for name, arrays in held.items()]
            update()
        told.cpu()
        frozen = sum(len(text) for rows in steps for _, text, _ in rows)
        graph = sum(len(suffix) + k for rows in steps for _, _, suffix in rows)
        return texts * len(steps), frozen + 2 * graph, 2 * sum(map(len, labels))
    repeat(job, model, work, warm=0)


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
        states = model.norm(model(ids, place, causal)[0], -1) * (place < lengths[:, None])[..., None]
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
        kept = model(prompt[:, :-1], torch.arange(length - 1, device=DEVICE)[None], causal)[1]
        [to[:, :, : length - 1].copy_(own) for pair in zip(keys, values, *zip(*kept)) for to, own in zip(pair[:2], pair[2:])]
        token.copy_(prompt[:, -1:]), position.fill_(length - 1)

    def attend(q, k, v, keys, values):
        # Written out, because the compiler's own kernels suit a single query better than those of SDPA.
        keys[:, :, position], values[:, :, position] = k, v
        scores = (q.reshape(rows, model.kv, -1, model.head_dim) @ keys.mT).float() * model.head_dim**-0.5
        scores = scores.masked_fill(torch.arange(size, device=DEVICE) > position, -torch.inf)
        return (scores.softmax(-1).bfloat16() @ values).view(q.shape)

    def step():
        token.copy_(model.logits(model(token, position[None], attend, lambda i: (keys[i], values[i]))[0]).argmax(-1))
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
    run = compiled(job, lambda ids: model.logits(model(ids, place, causal)[0][:, -1:]), CUDA_GRAPHS)
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


def pinned(array):
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if DEVICE == "cuda" else tensor


def upload(array):
    return pinned(array).to(DEVICE, non_blocking=True)


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
    DEVICE, RANK, ALPHA = job.get("device", "cuda"), job.get("rank", 16), job.get("lora_alpha", 32)
    works = {"train": train, "recipe": recipe, "embed": embed, "decode": decode, "prefill": prefill}
    torch.manual_seed(0)
    peak() if job["work"] == "peak" else works[job["work"]](job, Llama(job.get("hf")))
