"""The arena against lists of tokens, one a row: whatever joins, goes on and leaves."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from lcia.serving.engine import arena as arena_module
from lcia.serving.engine.arena import Arena

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
