"""A model that is prepared for the processor answers as it did, and is left as it came."""

import threading

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lcia.models import load_model
from lcia.models.batches import cache_argument
from lcia.serving.engine.batch import Batch
from lcia.serving.engine.engine import Engine
from lcia.serving.engine.limits import EngineLimits
from lcia.serving.engine.processor import MATMUL_FROM, NAME, attention, can_pack, prepare

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "mlp_bias": True,
}


def model_of(dtype, **more):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **more})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


@torch.inference_mode()
def steps(model, *, rows, columns):
    """Logits of a prompt with padding, and of two tokens after it."""
    cache, name = DynamicCache(), cache_argument(model)
    ids = (torch.arange(rows * columns) * 7 % 64).view(rows, columns)
    mask = torch.ones(rows, columns + 2, dtype=torch.long)
    mask[-1, : columns // 2] = 0
    first = model(input_ids=ids, attention_mask=mask[:, :columns], **{name: cache}).logits
    found = [first[:, -1]]
    for i in range(2):
        seen = mask[:, : columns + i + 1]
        out = model(input_ids=ids[:, i : i + 1], attention_mask=seen, **{name: cache})
        found.append(out.logits[:, -1])
    return torch.stack(found).float()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_answers_are_the_same_and_the_model_is_left_as_it_came(dtype, tied):
    model = model_of(dtype, tie_word_embeddings=tied)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows, columns = 8, MATMUL_FROM // 8 + 3  # enough for the attention by products
    plain = steps(model, rows=rows, columns=columns)
    restore = prepare(model)
    packed = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.is_mkldnn]
    assert len(packed) == (14 + (not tied) if can_pack(dtype) else 0)
    half = dtype != torch.float32
    assert model.config._attn_implementation == (NAME if half else "sdpa")
    found = steps(model, rows=rows, columns=columns)
    assert (found - plain).abs().max() <= (3e-2 if half else 1e-5) * plain.abs().max()
    restore()
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())
    again = model.state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    assert torch.equal(steps(model, rows=rows, columns=columns), plain)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_one_query_is_that_of_the_formula(rows, masked):
    torch.manual_seed(rows)
    query, key = torch.randn(rows, 6, 1, 32), torch.randn(rows, 2, 40, 32)
    value, mask = torch.randn(rows, 2, 40, 32), None
    if masked:
        mask = torch.rand(rows, 1, 1, 40) > 0.3
    half = [t.bfloat16() for t in (query, key, value)]
    layer = nn.Module()
    layer.num_key_value_groups, layer.is_causal = 3, True
    found, _ = attention(layer, *half, mask)
    assert found.shape == (rows, 1, 6, 32)
    query, key, value = (t.float() for t in half)
    scores = query @ key.repeat_interleave(3, 1).transpose(2, 3) / 32**0.5
    if masked:
        scores = scores.masked_fill(~mask, float("-inf"))
    wanted = scores.softmax(-1) @ value.repeat_interleave(3, 1)
    torch.testing.assert_close(found.float(), wanted.transpose(1, 2), atol=2e-2, rtol=2e-2)


def test_a_batch_gives_the_model_back(tiny_model):
    base = load_model(str(tiny_model), dtype="float32")
    batch = Batch(base, max_adapters=1)
    linear = base.model.model.layers[0].self_attn.q_proj
    assert linear.weight.is_mkldnn is can_pack(torch.float32)
    batch.detach()
    assert not linear.weight.is_mkldnn
    batch.detach()


def test_weights_that_are_exchanged_stay_in_their_order():
    model = model_of(torch.float32)
    gate = model.model.layers[0].mlp.gate_proj
    restore = prepare(model, leave=[gate.weight])
    assert not gate.weight.is_mkldnn
    restore()


def test_the_engines_thread_alone_uses_several_processors(tiny_model):
    before, found = torch.get_num_threads(), []
    base = load_model(str(tiny_model), dtype="float32")
    engine = Engine(base, limits=EngineLimits(threads=3))
    step = engine.scheduler.step

    def watched():
        found.append(torch.get_num_threads())
        step()

    engine.scheduler.step = watched
    try:
        with engine:
            engine.answer([engine.prompt("Say red.", max_new_tokens=3)])
            other = []
            thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            here = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert set(found) == {3}
    assert (here, other) == (1, [1])
