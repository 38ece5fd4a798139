"""Dynamic EMA hooked to an optimizer, for loops one cannot edit.

The gradients are those the optimizer's step just used; torch calls the hook right after it. A
step that fp16 loss scaling skips does not count.
"""

import torch

from lcia.ema import DynamicEMA

torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
ema = DynamicEMA(model.named_parameters(), rule="paper")
handle = ema.attach(optimizer)

for _ in range(50):
    x = torch.randn(16, 8)
    (model(x).squeeze(-1) - x.sum(dim=1)).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()

handle.remove()
ema.copy_to_parameters()
print(f"{ema.stats().steps:.0f} updates, beta {ema.stats().beta_mean:.3f}")
