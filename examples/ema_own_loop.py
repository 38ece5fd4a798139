"""Dynamic EMA in one's own training loop.

The gradients come from ``parameter.grad``: call ``update()`` after the optimizer's step and
before gradients are cleared.
"""

import torch

from lcia.ema import DynamicEMA

torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
ema = DynamicEMA(model.named_parameters(), rule={"name": "release", "fallback": 0.02})

for _ in range(50):
    x = torch.randn(16, 8)
    loss = (model(x).squeeze(-1) - x.sum(dim=1)).pow(2).mean()
    loss.backward()
    optimizer.step()
    ema.update()
    optimizer.zero_grad()

stats = ema.stats()
print(f"beta {stats.beta_mean:.3f}, remembers {stats.horizon_steps:.0f} steps")
print("fallbacks:", {reason: round(share, 2) for reason, share in stats.shares.items() if share})

with ema.swapped():  # the parameters are theta* in here
    print("weight of theta*:", [round(w, 2) for w in model.weight[0].tolist()])

ema.copy_to_parameters()  # and from here on
