"""Parts of a step: the arena of keys and values, the next token, the text of an answer."""

import math
import threading
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from lcia.models import load_model
from lcia.models.batches import cache_argument
from lcia.serving.engine import arena as arena_module
from lcia.serving.engine import sampling
from lcia.serving.engine.arena import Arena
from lcia.serving.engine.batch import Batch
from lcia.serving.engine.engine import Engine
from lcia.serving.engine.job import UNFINISHED, TextStream
from lcia.serving.engine.limits import EngineLimits
from lcia.serving.engine.processor import MATMUL_FROM, NAME, attention, can_pack, prepare
from lcia.serving.engine.sampling import Sampling

HEADS, SIZE, LAYERS = 2, 3, 2


def states(values):
    """Keys or values that hold each token's number: (rows, heads, columns, size)."""
    rows = torch.tensor(values, dtype=torch.float32)
    return rows[:, None, :, None].expand(len(values), HEADS, len(values[0]), SIZE)


def prefilled(sequences):
    width = max(map(len, sequences))
    cache = DynamicCache()
    padded = states([[float("nan")] * (width - len(s)) + s for s in sequences])
    for layer in range(LAYERS):
        cache.update(padded + layer, -padded - layer, layer)
    return cache


steps = st.lists(
    st.one_of(
        st.lists(st.integers(1, 40), min_size=1, max_size=3),  # prompts of these lengths join
        st.just("token"),
        st.integers(0, 5),  # this row leaves
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(steps)
def test_rows_hold_their_own_tokens_and_nothing_else(script):
    arena, rows, fresh = Arena(layers=LAYERS), [], iter(range(1, 10**6))
    with_headroom(4)
    for step in script:
        if isinstance(step, list):
            new = [[float(next(fresh)) for _ in range(n)] for n in step]
            kept = list(range(len(new)))[-2:]
            arena.join(prefilled(new), [len(s) for s in new], kept)
            rows += [new[i] for i in kept]
        elif step == "token" and rows:
            arena.make_room()
            tokens = [float(next(fresh)) for _ in rows]
            check(arena, rows, tokens)
            arena.advance()
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)
        elif isinstance(step, int) and step < len(rows):
            arena.drop(step)
            rows[step] = rows[-1]
            rows.pop()
        assert arena.lengths == [len(row) for row in rows]
    held = arena.layers[0].keys
    if held is not None:
        most, longest = held.shape[0], held.shape[2]
        assert most <= 64 and longest <= 41 + 60 + 4, "no larger than it once had to be"
    arena.clear()
    assert arena.layers[0].keys is None


def with_headroom(columns):
    arena_module.HEADROOM = columns


def check(arena, rows, tokens):
    """A step's keys and values are the rows' own, and zero where the mask hides them."""
    mask, width = arena.mask("cpu"), max(map(len, rows)) + 1
    assert mask.shape == (len(rows), width)
    assert arena.get_mask_sizes(1, 0) == (width, 0)
    for layer in range(LAYERS):
        new = states([[token] for token in tokens])
        keys, values = arena.update(new + layer, -new - layer, layer)
        assert keys.shape == (len(rows), HEADS, width, SIZE)
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            expected = torch.tensor([*row, token]) + layer
            assert (keys[i, :, mask[i]] == expected[None, :, None]).all()
            assert (values[i, :, mask[i]] == -expected[None, :, None]).all()
            assert (keys[i, :, ~mask[i]] == 0).all()
            assert (values[i, :, ~mask[i]] == 0).all()


@settings(max_examples=60)
@given(steps, st.integers(120, 400))
def test_buffers_stay_within_their_cells_whatever_mix_comes(script, cells):
    """Rows join only where the longest they get, times their number, fits: the scheduler's rule."""
    arena, rows, limits = Arena(layers=LAYERS, cells=cells), [], []
    with_headroom(128)
    for step in script:
        if isinstance(step, list):
            joining = [(n, n + 1 + n % 7) for n in step]
            longest = max(limit for _, limit in [*joining, *((0, limit) for limit in limits)])
            if (len(limits) + len(joining)) * longest > cells:
                continue
            arena.join(prefilled([[1.0] * n for n in step]), step, range(len(step)))
            rows += [n for n, _ in joining]
            limits += [limit for _, limit in joining]
        elif step == "token" and rows:
            arena.make_room()
            for layer in range(LAYERS):
                arena.update(states([[2.0]] * len(rows)), states([[2.0]] * len(rows)), layer)
            arena.advance()
            rows = [n + 1 for n in rows]
        elif isinstance(step, int) and step < len(rows):
            leave(arena, rows, limits, step)
        while full := [i for i, n in enumerate(rows) if n >= limits[i]]:
            leave(arena, rows, limits, full[0])
        assert arena.lengths == rows
        if arena.layers[0].keys is not None:
            assert arena.layers[0].keys.shape[0] * arena.layers[0].keys.shape[2] <= cells


def leave(arena, rows, limits, row):
    arena.drop(row)
    for one in (rows, limits):
        one[row] = one[-1]
        one.pop()


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def pieces(tokenizer, ids, stops=()):
    stream, found = TextStream(partial(tokenizer.decode, skip_special_tokens=True), stops), []
    for token in ids:
        found.append(stream.push(token))
        if stream.stopped:
            return found, stream
    return [*found, stream.finish()], stream


@given(ids=st.lists(st.integers(0, 259), max_size=30))
def test_any_bytes_add_up(tokenizer, ids):
    found, _ = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True)


@given(text=st.text(max_size=20))
def test_no_character_is_broken(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    found, _ = pieces(tokenizer, ids)
    if UNFINISHED not in text:
        assert not any(UNFINISHED in piece for piece in found)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True)


@given(
    text=st.text(alphabet="abé", max_size=20),
    stops=st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string(tokenizer, text, stops):
    found, stream = pieces(tokenizer, tokenizer(text)["input_ids"], stops)
    ends = [text.index(stop) for stop in stops if stop in text]
    # The stop that is complete first ends the answer; of those, the one that begins first.
    first = next(
        (n for n in range(1, len(text) + 1) if any(stop in text[:n] for stop in stops)), None
    )
    if first is None:
        assert not ends and "".join(found) == text and not stream.stopped
    else:
        known = [text[:first].index(stop) for stop in stops if stop in text[:first]]
        assert "".join(found) == text[: min(known)] and stream.stopped


def test_a_piece_is_given_as_soon_as_it_is_certain(tokenizer):
    found, _ = pieces(tokenizer, tokenizer("a€b")["input_ids"], stops=["bc"])
    assert found == ["a", "", "", "€", "", "b"]


def choose(logits, settings, generators):
    rows = enumerate(zip(sampling.peaks(logits), settings, generators, strict=True))
    return [sampling.choose(logits, row, *of_row) for row, of_row in rows]


def frequencies(logits, setting, draws=4000):
    generator = setting.generator()
    counts = torch.zeros(len(logits))
    for _ in range(draws):
        counts[choose(logits[None], [setting], [generator])[0]] += 1
    return counts / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 0.0, 1.0, -30.0])
    weights = [math.exp(float(x) / temperature) for x in logits]
    expected = torch.tensor([w / sum(weights) for w in weights])
    found = frequencies(logits, Sampling(temperature=temperature, seed=0))
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("candidates", [2, 256])
def test_top_p_keeps_the_smallest_set_that_reaches_it(monkeypatch, candidates):
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for top_p, kept in {
        0.05: [1],
        0.4: [1],
        0.41: [1, 3],
        0.75: [1, 2, 3],
        0.99: [0, 1, 2, 3],
    }.items():
        found = frequencies(logits, Sampling(temperature=1, top_p=top_p, seed=1), draws=1500)
        assert found.nonzero().flatten().tolist() == kept
        expected = logits.exp()[kept] / logits.exp()[kept].sum()
        torch.testing.assert_close(found[kept], expected, atol=0.05, rtol=0)


def test_rows_do_not_touch_each_other():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    drawn = Sampling(temperature=1.0, seed=7)
    alone = choose(logits[1:2], [drawn], [drawn.generator()])
    mixed = choose(logits, [Sampling(), drawn, Sampling()], [None, drawn.generator(), None])
    assert mixed == [int(logits[0].argmax()), alone[0], int(logits[2].argmax())]


def test_without_a_seed_answers_differ():
    logits = torch.zeros(1, 10000)
    drawn = {choose(logits, [s], [s.generator()])[0] for s in [Sampling(temperature=1.0)] * 5}
    assert len(drawn) > 1


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
def decoded(model, *, rows, columns):
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
    plain = decoded(model, rows=rows, columns=columns)
    restore = prepare(model)
    packed = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.is_mkldnn]
    assert len(packed) == (14 + (not tied) if can_pack(dtype) else 0)
    half = dtype != torch.float32
    assert model.config._attn_implementation == (NAME if half else "sdpa")
    found = decoded(model, rows=rows, columns=columns)
    assert (found - plain).abs().max() <= (3e-2 if half else 1e-5) * plain.abs().max()
    restore()
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())
    again = model.state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    assert torch.equal(decoded(model, rows=rows, columns=columns), plain)


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
