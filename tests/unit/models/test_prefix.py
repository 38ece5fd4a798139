"""What prompts share is read once, and no answer changes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lcia.models.batches import mask_of, padded
from lcia.models.prefix import behind_prefix, common_length, shares_prefixes

SHARED = list(range(100, 120))


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[*SHARED, 1], [*SHARED, 2, 3], [*SHARED, 2]], 20),
        ([[*SHARED, 1], SHARED], 19),  # every row keeps a token of its own
        ([SHARED, SHARED], 19),
        ([[*SHARED, 1], [*SHARED[:15], 1, 2]], 0),  # fewer than it is worth
        ([[*SHARED, 1]], 0),
        ([[1], [2]], 0),
    ],
)
def test_the_common_beginning_leaves_each_row_a_token(rows, length):
    assert common_length(rows) == length


def test_padding_moves_behind_the_beginning():
    rows = [[*SHARED, 1], [*SHARED, 2, 3, 4]]
    moved, length = behind_prefix(
        {"input_ids": padded(rows, value=0), "attention_mask": mask_of(rows)}, pad_id=0
    )
    assert length == 20
    assert moved["input_ids"].tolist() == [[*SHARED, 0, 0, 1], [*SHARED, 2, 3, 4]]
    assert moved["attention_mask"].tolist() == [[1] * 20 + [0, 0, 1], [1] * 23]


@pytest.mark.parametrize(
    ("kind", "options", "shares"),
    [
        ("llama", {}, True),
        ("gemma3_text", {"sliding_window": 8}, False),
        ("mamba", {}, False),
        ("bamba", {}, False),
    ],
)
def test_only_models_that_keep_all_tokens_share(kind, options, shares):
    config = AutoConfig.for_model(kind, num_hidden_layers=6, **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shares_prefixes(model) is shares
