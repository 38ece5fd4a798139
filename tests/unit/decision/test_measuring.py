"""What several sets of parameters give on the same samples: against one sample at a time."""

from itertools import count

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close

from lcia.config import AssistantConfig
from lcia.decision.measuring import BATCH, LowerLayers, Way, measure
from lcia.learner import load_host


def adapted(folder, *, layers):
    """A host, its model with an adapter on some layers, and values that differ from its own."""
    host = load_host(AssistantConfig(model=str(folder), dtype="float32"))
    modules = ["q_proj", "down_proj"]
    model = host.new_adapter(
        LoraConfig(r=4, target_modules=modules, layers_to_transform=layers, init_lora_weights=False)
    )
    model.eval()
    own = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(1)
    other = {n: p + torch.randn(p.shape, generator=generator) for n, p in own.items()}
    return host, model, own, other


def one_by_one(host, model, example):
    """Mean loss and the share that greedy decoding gives, re-derived from the model's logits."""
    ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
    with torch.no_grad():
        chances = model(input_ids=ids).logits[0].double().log_softmax(-1)
    first = len(example.prompt_ids)
    losses = [-float(chances[first + i - 1, t]) for i, t in enumerate(example.answer_ids)]
    given = 0
    for i, token in enumerate(example.answer_ids):
        if int(chances[first + i - 1].argmax()) != token:
            break
        given += 1
    return sum(losses) / len(losses), given / len(example.answer_ids)


@pytest.mark.parametrize("layers", [[1], [0, 1]])
def test_sharing_lower_layers_changes_no_number(layers, tiny_model, colours):
    host, model, own, other = adapted(tiny_model, layers=layers)
    examples = [host.chat.encode_example(sample) for sample in colours.train[: BATCH + 3]]
    lower = LowerLayers(model)
    assert (lower.count, lower.total) == (min(layers), 2)
    ways = [Way(lambda: own), Way(lambda: other), Way(lambda: own, plain=True)]
    found = measure(host, model, lower, examples=examples, ways=ways)
    assert lower.count == min(layers)  # its check has passed
    for way, measured in zip(ways, found, strict=True):
        with torch.no_grad():
            for name, values in way.state().items():
                model.get_parameter(name).copy_(values)
        alone = host.base.model if way.plain else model
        with model.disable_adapter() if way.plain else torch.no_grad():
            expected = [one_by_one(host, alone, example) for example in examples]
        losses, given = np.array(expected).T
        assert_close(measured.losses, losses, rtol=1e-4, atol=1e-5)
        assert measured.given.tolist() == given.tolist()


def test_lower_layers_run_once_a_batch_whatever_is_measured(tiny_model, colours):
    host, model, own, other = adapted(tiny_model, layers=[1])
    stack = model.get_submodule("base_model.model.model.layers")
    runs = [0, 0]
    for i, layer in enumerate(stack):
        original = layer.self_attn.forward

        def counted(*args, i=i, original=original, **kwargs):
            runs[i] += 1
            return original(*args, **kwargs)

        layer.self_attn.forward = counted
    examples = [host.chat.encode_example(sample) for sample in colours.train[:BATCH]]
    lower = LowerLayers(model)
    ways = [Way(lambda: own), Way(lambda: other), Way(lambda: own)]
    measure(host, model, lower, examples=examples, ways=ways)
    assert runs == [1, 4]  # the first batch runs the upper layers once more, to compare
    measure(host, model, lower, examples=examples, ways=ways)
    assert runs == [2, 7]
    assert lower.passes(3) == 1 + 3


def test_layers_whose_output_is_not_all_that_counts_are_not_shared(tiny_model, colours, caplog):
    host, model, own, other = adapted(tiny_model, layers=[1])
    _, above = model.get_submodule("base_model.model.model.layers")
    calls = count()
    above.register_forward_hook(lambda _, inputs, output: output + next(calls))
    examples = [host.chat.encode_example(sample) for sample in colours.train[:2]]
    lower = LowerLayers(model)
    measure(host, model, lower, examples=examples, ways=[Way(lambda: own), Way(lambda: other)])
    assert lower.count == 0
    assert "cannot be shared" in caplog.text
