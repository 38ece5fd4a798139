"""What makes a step fast on a processor: weights in oneDNN's order, attention by two products."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lcia.memory import use_huge_pages

logger = logging.getLogger(__name__)

NAME = "lcia_processor"
"""Of the attention, as transformers knows it."""

MATMUL_FROM = 256
"""Rows times columns from which two products beat torch's attention in half precision."""


HUGE_FROM = 64 << 20
"""Bytes of weights from which larger pages of memory are worth asking for."""


def prepare(model: Any, *, leave: Sequence[nn.Parameter] = ()) -> Callable[[], None]:
    """Make a model's steps fast if it is on a processor; return what makes it as it was.

    Its answers are the same up to rounding. Its weights are moved to another order in memory, not
    copied, but for those that an embedding shares.

    Args:
        model: a language model in evaluation mode.
        leave: weights that stay in their order, because their values will be exchanged.
    """
    if model.device.type != "cpu":
        return lambda: None
    undo = [_use_attention(model), *_pack(model, leave)]
    if sum(weight.numel() * weight.element_size() for weight in model.parameters()) >= HUGE_FROM:
        use_huge_pages()

    def restore() -> None:
        for step in undo:
            step()

    return restore


# Weights


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN multiplies by weights of a dtype on this processor: it is tried."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        fast: dict[torch.dtype, Callable[[], bool]] = {
            torch.float32: lambda: True,
            torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
            torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
        }
        if dtype not in fast or not fast[dtype]():
            return False
        layer = nn.utils.skip_init(nn.Linear, 32, 16, dtype=dtype)  # draws no random numbers
        inputs = torch.linspace(-1, 1, 64).view(2, 32).to(dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, 512).view(16, 32))
            layer.bias.copy_(torch.linspace(0, 1, 16))
            plain = layer(inputs)
            _packed(layer, keep=True)
            return torch.allclose(layer(inputs), plain, rtol=0.02, atol=0.02)
    except (AttributeError, RuntimeError) as error:  # another torch, another kind of processor
        logger.info("weights stay in their order: %s", str(error).partition("\n")[0])
        return False


def _pack(model: Any, leave: Sequence[nn.Parameter]) -> Iterator[Callable[[], None]]:
    """Reorder the weights of linear layers; yield what takes each of them back.

    torch's own product reorders a weight at every call, or reads it in an order that suits no
    vector unit.
    """
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    left = set(map(id, leave))
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.is_mkldnn:
            continue
        if id(module.weight) not in left and can_pack(module.weight.dtype):
            yield _packed(module, keep=id(module.weight) in shared)


@torch.no_grad()
def _packed(module: nn.Linear, *, keep: bool) -> Callable[[], None]:
    weight, multiply = module.weight, torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    bias = None if module.bias is None else module.bias.detach()

    def forward(inputs: Tensor) -> Tensor:
        return multiply(inputs, packed, bias, "none", [], "")

    module.forward = forward  # type: ignore[assignment, method-assign]
    trained = weight.requires_grad
    if keep:
        return lambda: delattr(module, "forward")
    module.weight = nn.Parameter(packed, requires_grad=False)

    def restore() -> None:
        del module.forward
        module.weight = nn.Parameter(packed.to_dense(), requires_grad=trained)

    return restore


# Attention


def _use_attention(model: Any) -> Callable[[], None]:
    """Let a model in half precision that uses torch's attention use ``attention`` instead."""
    before = model.config._attn_implementation
    if before != "sdpa" or model.dtype == torch.float32:
        return lambda: None
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return lambda: model.set_attn_implementation(before)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return what ``sdpa_attention_forward`` of transformers does, faster for one token a row.

    In half precision torch's kernel takes longer for many rows with one query each than two
    products do.

    Args:
        module: the attention layer.
        query: shape (rows, heads, queries, size).
        key: shape (rows, heads of keys, columns, size).
        value: shape (rows, heads of keys, columns, size).
        attention_mask: what each query sees, shape (rows, 1, queries, columns); None: all.
        dropout: of weights; 0 where nothing is trained.
        scaling: of products; by default 1 / sqrt(size).
        options: what else transformers passes.
    """
    rows, heads, queries, size = query.shape
    plain = attention_mask is None or attention_mask.dtype == torch.bool
    plain = plain and not dropout and options.get("position_bias") is None
    if not plain or queries != 1 or rows * key.shape[2] < MATMUL_FROM:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    grouped = query.reshape(rows, key.shape[1], -1, size)
    scores = (grouped @ key.transpose(2, 3)).float().mul_(scaling or size**-0.5)
    if attention_mask is not None:
        scores.masked_fill_(attention_mask.logical_not(), float("-inf"))
    found = scores.softmax(-1).to(value.dtype) @ value
    return found.view(rows, 1, heads, -1), None
