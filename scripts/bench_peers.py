"""The other side of `cargo xtask bench`: the same jobs by the programs that people use today.

usage: bench_peers.py PEER JOB, with JOB as the example `workload` has it; prints the same lines.
       bench_peers.py convert MODEL.gguf OUT_DIR
       bench_peers.py products
PEER is `torch` (transformers, in the job's `dtype`), `sentence-transformers`, `llama-cpp` or `reference` (the PyTorch GEM
in the job's `reference`). `convert` writes the weights dequantised, as transformers reads them. `products` prints what torch's linear maps
reach on rows of the shapes that `crates/kernels/examples/peak.rs` has: of bf16 numbers in and out, of those with rows and
outputs that are f32, and of f32; and, where oneDNN is installed beside it (the package onednn-cpu-gomp), what that reaches of
bf16 rows with f32 outputs as ours are, which torch does not offer, and of bf16 outputs. Threads are those of OMP_NUM_THREADS.

llama-cpp-python is compiled when it is installed. On a CPU with AMX, GCC 12 sets its tiles up wrongly and it ends by a
protection fault; clang 14 does not see that its tile code applies. At its best there it is built with CC=clang CXX=clang++ and
CFLAGS and CXXFLAGS "-mamx-tile -mamx-int8 -mamx-bf16 -D__AMX_INT8__ -D__AMX_TILE__ -D__AMX_BF16__".
"""
import json, os, sys, time
from pathlib import Path

THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))


def peak_mib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def repeat(times, prepare, work):
    """As `repeat` of the workload: the first repetition warms up."""
    work(prepare())
    measure(times, prepare, work)


def measure(times, prepare, work):
    for _ in range(times):
        prepared = prepare()
        wall, cpu = time.perf_counter(), time.process_time()
        items = work(prepared)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        tell(items, cpu, wall)


BUILD = {}


def tell(items, cpu, wall):
    print(json.dumps({"items": items, "cpu_secs": cpu, "wall_secs": wall, "peak_mib": peak_mib(), **BUILD}), flush=True)


def started(work):
    """From the start of this process to the end of `work`, as `Start` of the workload."""
    work()
    ticks = int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    wall = float(open("/proc/uptime").read().split()[0]) - ticks / 100
    tell(1, time.process_time(), wall)



TOKENS, SHAPES = 2048, [(576, 576), (192, 576), (1536, 576), (576, 1536)]


def best_rate(shape, work):
    """The best of nine tries of four; the first warms up."""
    work()
    best = 0.0
    for _ in range(9):
        clock = time.perf_counter()
        for _ in range(4):
            work()
        best = max(best, 4 * 2 * TOKENS * shape[0] * shape[1] / (time.perf_counter() - clock))
    return best


def products():
    import torch
    import torch.nn.functional as F
    torch.set_num_threads(THREADS)
    rates = {}
    for out, width in SHAPES:
        w, x = torch.randn(out, width), torch.randn(TOKENS, width)
        half_w, half_x = w.bfloat16(), x.bfloat16()
        works = {"torch_bf16": lambda: F.linear(half_x, half_w), "torch_f32": lambda: F.linear(x, w),
                 "torch_bf16_of_f32": lambda: F.linear(x.bfloat16(), half_w).float()}
        library = Path(sys.prefix) / "lib/libdnnl.so.3"
        if library.exists():
            for kind, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
                works[f"onednn_bf16_to_{kind}"] = onednn_product(library, (half_x, half_w), dtype)
        for name, work in works.items():
            with torch.inference_mode():
                rates[f"{name}_{out}x{width}"] = best_rate((out, width), work)
    print(json.dumps(rates), flush=True)


def onednn_product(library, operands, dtype):
    """A product by oneDNN's C interface (version 3): rows and weights of bf16, the weights packed as it likes them.

    The outputs take the same memory each time, where torch's and ours are asked for anew."""
    import ctypes, torch
    from ctypes import byref, c_int, c_int64, c_void_p
    x, w = operands
    dnnl = ctypes.CDLL(str(library))
    DTYPES, CPU, ROWS, ANY = {torch.bfloat16: 2, torch.float32: 3}, 1, 3, 1
    SRC, DST, WEIGHTS, WEIGHTS_DESC = 1, 17, 33, 131  # a reorder's ends are SRC and DST too

    class Argument(ctypes.Structure):
        _fields_ = [("name", c_int), ("memory", c_void_p)]

    def call(name, *arguments):
        status = getattr(dnnl, "dnnl_" + name)(*arguments)
        assert status == 0, f"dnnl_{name}: {status}"

    def made(name, *arguments):
        found = c_void_p()
        call(name, byref(found), *arguments)
        return found

    def desc(shape, dtype, tag):
        return made("memory_desc_create_with_tag", c_int(len(shape)), (c_int64 * 12)(*shape), DTYPES[dtype], tag)

    def memory(desc, place):
        return made("memory_create", desc, engine, c_void_p(place))

    def execution(primitive, arguments):
        places = (Argument * len(arguments))(*(Argument(name, place) for name, place in arguments))

        def execute():
            call("primitive_execute", primitive, stream, len(arguments), places)
            call("stream_wait", stream)

        return execute

    engine = made("engine_create", CPU, ctypes.c_size_t(0))
    stream = made("stream_create", engine, 1)
    columns, y = w.t().contiguous(), torch.empty(len(x), len(w), dtype=dtype)
    descs = [desc(x.shape, x.dtype, ROWS), desc(columns.shape, w.dtype, ANY), desc(y.shape, dtype, ROWS)]
    product = made("matmul_primitive_desc_create", engine, descs[0], descs[1], None, descs[2], None)
    dnnl.dnnl_primitive_desc_query_md.restype = c_void_p
    packed_desc = c_void_p(dnnl.dnnl_primitive_desc_query_md(product, WEIGHTS_DESC, 0))
    plain_desc = desc(columns.shape, w.dtype, ROWS)
    packed = memory(packed_desc, -1)
    packing = made("reorder_primitive_desc_create", plain_desc, engine, packed_desc, engine, None)
    plain = memory(plain_desc, columns.data_ptr())
    execution(made("primitive_create", packing), [(SRC, plain), (DST, packed)])()
    places = [(SRC, memory(descs[0], x.data_ptr())), (WEIGHTS, packed), (DST, memory(descs[2], y.data_ptr()))]
    execute = execution(made("primitive_create", product), places)

    def run():
        execute()
        return x, y  # they live as long as this

    run()
    torch.testing.assert_close(y.float(), x.float() @ w.float().t(), rtol=1e-2, atol=0.5 if dtype is torch.bfloat16 else 1e-3)
    return run


def lines_of(job):
    return Path(job["texts"]).read_text(encoding="utf-8").splitlines()


def torch_peer(job):
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["hf"], dtype=dtype).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{job['hf']}/tokenizer.json")
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    if job["work"] == "embed":
        texts = lines_of(job)

        def embed(texts):
            # Sorted by length, so that little is padding.
            ids = sorted((encode(text) for text in texts), key=len)
            for first in range(0, len(ids), job["batch_rows"]):
                rows = ids[first : first + job["batch_rows"]]
                width = len(rows[-1])
                tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
                states = model.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
                mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                torch.nn.functional.normalize(mean, dim=-1).numpy()
            return sum(map(len, ids))

        embed(texts[:64])
        return measure(job["repeat"], lambda: texts, embed)
    if job["work"] == "prefill":
        ids = torch.tensor([encode(" ".join(lines_of(job)))[: job["tokens"]]])
        return repeat(job["repeat"], lambda: None, lambda _: model(ids, logits_to_keep=1).logits.shape[0] * ids.shape[1])
    raise SystemExit(f"torch: no {job['work']}")


def sentence_transformers_peer(job):
    import torch
    from sentence_transformers import SentenceTransformer, models

    torch.set_num_threads(THREADS)
    words = models.Transformer(job["hf"])
    words.tokenizer.pad_token = words.tokenizer.eos_token
    model = SentenceTransformer(modules=[words, models.Pooling(words.get_word_embedding_dimension(), "mean")], device="cpu")
    if job["work"] == "start":
        return started(lambda: model.encode([job["text"]], normalize_embeddings=True))
    texts = lines_of(job)
    count = sum(len(ids) for ids in words.tokenizer(texts)["input_ids"])

    def embed(texts):
        model.encode(texts, normalize_embeddings=True)
        return count

    embed(texts[:64])
    measure(job["repeat"], lambda: texts, embed)


def llama_cpp_peer(job):
    from llama_cpp import LLAMA_POOLING_TYPE_MEAN, Llama, llama_print_system_info

    units = [unit.split(" =")[0].strip() for unit in llama_print_system_info().decode().split("|") if "= 1" in unit]
    BUILD["build"] = "built with " + ", ".join(units)

    common = {"model_path": job["model"], "n_threads": THREADS, "n_threads_batch": THREADS, "verbose": False}
    if job["work"] == "start":
        llm = Llama(**common, embedding=True, pooling_type=LLAMA_POOLING_TYPE_MEAN)
        return started(lambda: llm.embed(job["text"], normalize=True))
    if job["work"] == "embed":
        llm = Llama(**common, embedding=True, pooling_type=LLAMA_POOLING_TYPE_MEAN, n_ctx=8192, n_batch=2048, n_ubatch=2048)
        texts = lines_of(job)
        count = sum(len(llm.tokenize(text.encode(), add_bos=False)) for text in texts)

        def embed(texts):
            llm.embed(texts, normalize=True)
            return count

        embed(texts[:64])
        return measure(job["repeat"], lambda: texts, embed)
    if job.get("rows"):
        return llama_cpp_rows(Llama(**common, vocab_only=False, n_ctx=64), job)
    llm = Llama(**common, n_ctx=4096, n_batch=512, n_ubatch=512)
    ids = llm.tokenize(" ".join(lines_of(job)).encode(), add_bos=False)
    if job["work"] == "prefill":

        def prefill(_):
            llm.eval(ids[: job["tokens"]])
            return job["tokens"]

        return repeat(job["repeat"], llm.reset, prefill)
    if job["work"] == "decode":

        def prepare():
            llm.reset()
            llm.eval(ids[: job["prompt_tokens"] - 1])

        def decode(_):
            token = ids[job["prompt_tokens"] - 1]
            for _ in range(job["new_tokens"]):
                llm.eval([token])
                token = llm.sample(temp=0.0)
            return job["new_tokens"]

        return repeat(job["repeat"], prepare, decode)
    raise SystemExit(f"llama-cpp: no {job['work']}")


def llama_cpp_rows(llm, job):
    """Rows that are decoded together, by the C interface: the class has one row."""
    import llama_cpp as c
    import numpy as np

    rows, prompt, new = job["rows"], job["prompt_tokens"], job["new_tokens"]
    params = c.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = rows * (prompt + new), 512, 512, rows
    params.n_threads = params.n_threads_batch = THREADS
    context = c.llama_init_from_model(llm._model.model, params)
    vocabulary = llm.n_vocab()
    ids = llm.tokenize(" ".join(lines_of(job)).encode(), add_bos=False)
    batch = c.llama_batch_init(512, 0, 1)

    def run(tokens):
        """`tokens`: token, position, row, whether its logits are wanted."""
        batch.n_tokens = len(tokens)
        for i, (token, position, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = row
        assert c.llama_decode(context, batch) == 0

    def prepare():
        c.llama_memory_clear(c.llama_get_memory(context), True)
        for row in range(rows):
            of_row = ids[row * prompt : (row + 1) * prompt - 1]
            run([(token, i, row, i + 1 == len(of_row)) for i, token in enumerate(of_row)])
        return [ids[(row + 1) * prompt - 1] for row in range(rows)]

    def decode(last):
        for position in range(prompt - 1, prompt - 1 + new):
            run([(token, position, row, True) for row, token in enumerate(last)])
            logits = [np.ctypeslib.as_array(c.llama_get_logits_ith(context, row), (vocabulary,)) for row in range(rows)]
            last = [int(row.argmax()) for row in logits]
        return rows * new

    repeat(job["repeat"], prepare, decode)


def reference_peer(job):
    sys.path.insert(0, job["reference"])
    import numpy as np
    import torch
    import gem_ref as gem

    torch.set_num_threads(THREADS)
    k = 6
    full = job["full"]
    model = gem.Llama(path=f"{job['hf']}/model.safetensors", k=k, lora=0 if full else 16, train="full" if full else "lora",
                      dtype=torch.float32 if full else getattr(torch, job["dtype"]),
                      e_init=[314, 1216, 281, 582, 1834, 18])
    model.scope = job["scope"]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    rng = np.random.default_rng(0)
    rows = job["rows"]

    def step(_):
        texts = [rng.integers(100, 49152, job["tokens"]).tolist() for _ in range(rows)]
        positives = [gem.token_dropout(text, 0.2, rng) for text in texts]
        batch = gem.Batch([gem.gem_row(text, k) for text in texts + positives])
        pooled = gem.pool(model(batch), batch)
        loss = gem.info_nce(pooled[:rows], pooled[rows:], 0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return rows

    repeat(job["repeat"], lambda: None, step)


def convert(model, out):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = Path(model).resolve()
    dequantised = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name)
    # What it was made from is not to be saved with it.
    if hasattr(dequantised.config, "quantization_config"):
        del dequantised.config.quantization_config
    plain = AutoModelForCausalLM.from_config(dequantised.config)
    plain.load_state_dict(dequantised.state_dict())
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(out)


PEERS = {"torch": torch_peer, "sentence-transformers": sentence_transformers_peer, "llama-cpp": llama_cpp_peer,
         "reference": reference_peer}

if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(*sys.argv[2:4])
    elif sys.argv[1] == "products":
        products()
    else:
        PEERS[sys.argv[1]](json.loads(sys.argv[2]))
