"""Ten steps of torch.optim.AdamW: the literal values of crates/kernels/tests/ops/adamw.rs, printed to stdout.

Gradients are (7 i + 3 t) % 11 - 5 eighths for number i at step t, exact in f32.
"""

import torch

START = [0.5, -1.0, 0.0, 2.0]

parameter = torch.nn.Parameter(torch.tensor(START))
optimizer = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
for step in range(1, 11):
    parameter.grad = torch.tensor([((7 * i + 3 * step) % 11 - 5) / 8 for i in range(len(START))])
    optimizer.step()
    print("    [" + ", ".join(f"{value:.9}" for value in parameter.tolist()) + "],")
