"""GGUF files and Modelfiles: what llama.cpp, Ollama and transformers read is what was written."""

import asyncio
import shutil
import signal
from dataclasses import replace

import httpx
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from benchmarks.serving_vllm import LLAMA_SERVER, Server, gateway_before, llama_server
from conftest import CHAT_TEMPLATE
from lcia.config import AssistantConfig
from lcia.demo.embedded import SMOLLM2
from lcia.demo.skills import skills
from lcia.errors import StoreError
from lcia.exports.gguf import (
    _WORDS,
    FILE,
    PLAIN,
    Vocabulary,
    check_llama,
    export_gguf,
    export_llama_cpp,
    write_adapter,
    write_gguf,
)
from lcia.exports.ollama import _quoted, find_pieces
from lcia.learner import ContinualLearner, Store
from lcia.models import load_model
from lcia.models.answering import NAMED, TemplateSettings
from lcia.models.host import chat_format
from lcia.serving.engine.bank import Factors

SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CORPUS = [
    "Say the letter of the colour.\n\nred green blue white",
    "Write this number as a digit. one two three 1234567890 2026-11-26",
    "It's what they've said: you'll see, I'd say so. Größe, naïve, 東京, наука!",
    "    def f(x):\n\n        return  x + 12\t# tabs\r\n",
]
NASTY = [
    "Hello world",
    "  two  spaces   three ",
    "It's 12345 o'clock, THEY'LL say\n\n\n  x",
    "naïve Größe 東京 наука ½ ٣٤ 🙂 é",
    "a\tb\r\nc \n d",
    "<|user|>Say red<|end|>\n<|assistant|>",
    "1,234.56 -7 x2y3",
    "",
    " ",
]
CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS.replace("{1,3}", "")), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
SHAPES = {
    "plain": {},
    "tied, one key": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
}


def tokenizer_of(cut="gpt-2", template=CHAT_TEMPLATE):
    """A byte-level BPE tokenizer with a few hundred merges."""
    made = Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))
    made.pre_tokenizer = CUTS[cut]
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = template
    return fast


def model_of(tokenizer, **shape):
    torch.manual_seed(0)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**config, **shape})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def written(folder, tokenizer, model, **settings):
    """Write a model as GGUF; return the file and what it says about tokens."""
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    base = load_model(str(folder / "hf"), dtype="float32")
    chat = chat_format(base, max_prompt_tokens=256, template=TemplateSettings(**settings))
    tokens = Vocabulary(chat, template=tokenizer.chat_template or PLAIN)
    write_gguf(base.model, tokens, folder / FILE, name="tiny")
    return folder / FILE, tokens


def llama(path, **options):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    full = {"type_k": 0, "type_v": 0}  # float32, as transformers keeps keys and values
    return llama_cpp.Llama(str(path), verbose=False, n_ctx=256, n_threads=1, **full, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_reads_the_file_as_the_model_it_was(tmp_path, dtype):
    model = model_of(tokenizer_of()).to(dtype)
    path, _ = written(tmp_path, tokenizer_of(), model)
    again = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=FILE, dtype=torch.float32)
    wanted = model.float().state_dict()
    found = again.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=FILE)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|end|>")


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_what_transformers_does(tmp_path, shape):
    tokenizer = tokenizer_of()
    model = model_of(tokenizer, **SHAPES[shape])
    path, _ = written(tmp_path, tokenizer, model)
    ids = [(7 * i + 3) % len(tokenizer) for i in range(100)]
    reader = llama(path, logits_all=True)
    reader.eval(ids)
    found = torch.tensor(reader.scores[: len(ids)])
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0]
    assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("cut", CUTS)
def test_llama_cpp_reads_text_as_the_tokenizer_does(tmp_path, cut):
    tokenizer = tokenizer_of(cut)
    path, tokens = written(tmp_path, tokenizer, model_of(tokenizer))
    assert tokens.splitter == cut
    reader = llama(path, vocab_only=True)
    for text in [*NASTY, *CORPUS]:
        found = reader.tokenize(text.encode(), add_bos=False, special=True)
        assert found == tokenizer(text, add_special_tokens=False)["input_ids"], text


@pytest.fixture(scope="module")
def learned(tmp_path_factory, colours):
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = tokenizer_of("smollm")
    model_of(tokenizer, initializer_range=0.02).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = AssistantConfig(
        model=str(folder / "base"),
        dtype="float32",
        training={"num_train_epochs": 8, "learning_rate": 1e-2},
    )
    learner = ContinualLearner.create(folder / "assistant", config)
    learner.learn(colours)
    return learner


def test_llama_cpp_answers_as_the_assistant_does(learned, tmp_path, colours):
    about = export_gguf(learned.store, tmp_path / "out")
    assert about["stop"] == ["<|end|>"]
    reader = llama(tmp_path / "out" / "g1" / FILE)
    asked = [list(sample.messages) for sample in (*colours.train, *colours.test)]
    adapter = learned.store.current.adapters["g1"]
    wanted = learned.host.generate(asked, [adapter] * len(asked), max_new_tokens=12)
    assert all(wanted)
    assert [answered(reader, messages, 12) for messages in asked] == wanted


def answered(reader, messages, max_tokens):
    """Ask llama.cpp greedily, by the chat template in the file."""
    turns = [{"role": turn.role, "content": turn.content} for turn in messages]
    done = reader.create_chat_completion(turns, temperature=0.0, max_tokens=max_tokens)
    return done["choices"][0]["message"]["content"].strip()


@pytest.mark.slow
def test_a_hundred_answers_of_smollm2_are_the_same_in_llama_cpp(tmp_path):
    tasks = skills()[:4]
    config = AssistantConfig(
        model=SMOLLM2.name, dtype="float32", training={"learning_rate": 1e-3, "max_steps": 12}
    )
    learner = ContinualLearner.create(tmp_path / "assistant", config)
    learner.learn(replace(tasks[0], test=tasks[0].test[:2]))
    export_gguf(learner.store, tmp_path / "out")
    adapter = learner.store.current.adapters["g1"]
    reader = llama(tmp_path / "out" / "g1" / FILE)
    asked = [list(sample.messages) for task in tasks for sample in task.test[:25]]
    wanted = learner.host.generate(asked, [adapter] * 100, max_new_tokens=16)
    found = [answered(reader, messages, 16) for messages in asked]
    different = [pair for pair in zip(wanted, found, strict=True) if pair[0] != pair[1]]
    assert len(set(wanted)) > 50
    assert len(different) <= 5, different


def test_other_architectures_are_refused_by_name_before_anything_is_merged(
    learned, tmp_path, colours
):
    tokenizer = tokenizer_of()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(
        tmp_path / "base"
    )
    tokenizer.save_pretrained(tmp_path / "base")
    config = AssistantConfig(
        model=str(tmp_path / "base"), dtype="float32", training={"max_steps": 1}
    )
    learner = ContinualLearner.create(tmp_path / "assistant", config)
    learner.learn(colours)
    with pytest.raises(StoreError, match="model: is a qwen2; GGUF files are written of Llama"):
        export_gguf(learner.store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type dynamic",
        ),
    ],
)
def test_what_a_llama_of_llama_cpp_does_not_compute_is_refused(shape, message):
    with pytest.raises(StoreError, match=message):
        check_llama(LlamaConfig(**shape))


def test_an_unknown_tokenizer_is_refused(tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)  # no merges
    with pytest.raises(StoreError, match=r"none of those that llama\.cpp is known to read alike"):
        written(tmp_path, tokenizer, model_of(tokenizer))


def test_a_template_and_its_settings_are_in_the_file(learned, tmp_path):
    from gguf import GGUFReader

    export_gguf(learned.store, tmp_path / "out")
    fields = GGUFReader(tmp_path / "out" / "g1" / FILE).fields
    assert fields["tokenizer.chat_template"].contents() == CHAT_TEMPLATE
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["general.name"].contents() == "assistant-g1"


# Ollama


SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set told = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set told = '' %}{%- endif %}"
    "{{- '<|start|>system<|stop|>\n\nToday: 26 Jul 2024\n\n' + told + '<|eot|>' }}"
    "{%- for m in messages %}{{- '<|start|>' + m['role'] + '<|stop|>\n\n' + m['content'] | trim"
    " + '<|eot|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant<|stop|>\n\n' }}{%- endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FOLDING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[Q] {{ m['content'] }} [/Q]"
    "{% elif m['role'] == 'system' %}<<{{ m['content'] }}>>"
    "{% else %} {{ m['content'] }}<|end|>{% endif %}{% if loop.last %}.{% endif %}{% endfor %}"
)


class Told:
    """What ``find_pieces`` asks of a vocabulary."""

    def __init__(self, template, *, start=None):
        self.tokenizer = tokenizer_of(template=template)
        self.tokenizer.bos_token = start
        self.template, self.start, self.adds_start = template, start, start is not None
        self.stops = ["<|im_end|>"]

    rendered = Vocabulary.rendered


@pytest.mark.parametrize(
    ("template", "start", "head"),
    [
        (NAMED["chatml"], None, ""),
        (CHAT_TEMPLATE, None, ""),
        (SMOLLM, None, "<|im_start|>system\nBe kind.<|im_end|>\n"),
        (HEADERS, "<|begin|>", "<|start|>system<|stop|>\n\nToday: 26 Jul 2024\n\n<|eot|>"),
    ],
)
def test_a_template_of_turns_is_told_in_pieces(template, start, head):
    told = Told(template, start=start)
    pieces = find_pieces(told)
    assert pieces.head == head
    asked = [("user", "one"), ("assistant", "two"), ("user", "{{ three }}")]
    for turns in (asked, [("system", "zero"), *asked]):
        assert (start or "") + pieces.render(turns) == told.rendered(turns, cue=True)


@pytest.mark.parametrize("template", [NO_SYSTEM, FOLDING, PLAIN])
def test_what_ollama_cannot_say_is_refused(template):
    with pytest.raises(StoreError, match=r"chat template does more than.*--format gguf"):
        find_pieces(Told(template))


@pytest.mark.parametrize("text", ['say """', 'ends with "', "bell \a", "zero\u200bwidth"])
def test_what_a_modelfile_cannot_hold_is_refused(text):
    with pytest.raises(StoreError, match="a Modelfile cannot hold"):
        _quoted(text)


def test_a_modelfile_holds_template_and_stops(learned, tmp_path):
    about = export_gguf(learned.store, tmp_path / "out", ollama=True)
    assert about["stop"] == ["<|end|>"]
    text = (tmp_path / "out" / "g1" / "Modelfile").read_text(encoding="utf-8")
    assert text.splitlines() == [
        "FROM ./model.gguf",
        'TEMPLATE """{{ if ne (index .Messages 0).Role "system" }}{{ end }}{{ range .Messages }}'
        '{{ if eq .Role "system" }}<|system|>{{ .Content }}<|end|>',
        '{{ else if eq .Role "user" }}<|user|>{{ .Content }}<|end|>',
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|end|>',
        '{{ end }}{{ end }}<|assistant|>"""',
        'PARAMETER stop """<|end|>"""',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]
    assert (tmp_path / "out" / "g1" / FILE).is_file()


# llama.cpp's server: the base once, adapters beside it


def tensors(path):
    """Name to values of a GGUF file, in torch's order of dimensions."""
    from gguf import GGUFReader

    return {
        tensor.name: torch.from_numpy(tensor.data.copy().reshape(*reversed(tensor.shape.tolist())))
        for tensor in GGUFReader(path).tensors
    }


def test_base_and_adapter_are_the_merged_model_in_two_files(learned, tmp_path):
    export_gguf(learned.store, tmp_path / "merged")
    about = export_llama_cpp(learned.store, tmp_path / "out")
    key = about["adapters"]["g1"]
    base, merged = tensors(tmp_path / "out" / "base.gguf"), tensors(tmp_path / "merged/g1" / FILE)
    adapter = tensors(tmp_path / "out" / "adapters" / f"{key}.gguf")
    assert base.keys() == merged.keys()
    adapted = {name.rpartition(".lora_")[0] for name in adapter}
    assert adapted < base.keys()
    assert {name.split(".")[2] for name in adapted} >= {"attn_q", "attn_k", "attn_v"}
    for name, weight in base.items():
        change = merged[name] - weight
        if name not in adapted:
            assert not change.any(), name
            continue
        found = adapter[f"{name}.lora_b"] @ adapter[f"{name}.lora_a"]
        assert found.abs().max() > 1e-4, name
        torch.testing.assert_close(found, change, atol=2e-6, rtol=0, msg=name)


def test_the_script_for_llama_cpp_names_every_adapter_by_group_and_version(learned, tmp_path):
    about = export_llama_cpp(learned.store, tmp_path / "out")
    text = (tmp_path / "out" / "serve.sh").read_text(encoding="utf-8")
    assert f"--lora adapters/{about['adapters']['g1']}.gguf" in text
    assert "--lora-init-without-apply" in text
    assert (tmp_path / "out" / "README.md").is_file()


def test_llama_cpps_server_answers_as_the_assistant_does_whatever_its_numbers(
    learned, tmp_path, colours, numbers
):
    program = llama_server()
    if program is None:
        pytest.skip(f"llama-server is not on the path; {LLAMA_SERVER} names the program")
    asyncio.run(ask_llama_cpp(program, learned, tmp_path, colours, numbers))


async def ask_llama_cpp(program, learned, tmp_path, colours, numbers):
    shutil.copytree(learned.store.root, tmp_path / "assistant")
    learned = ContinualLearner(Store.open(tmp_path / "assistant"), host=learned.host)
    learned.learn(numbers)
    store = learned.store
    export_llama_cpp(store, tmp_path / "out")
    turned = tmp_path / "turned"
    shutil.copytree(tmp_path / "out", turned)
    text = (turned / "serve.sh").read_text(encoding="utf-8")
    first, second = [f"adapters/{key}.gguf" for key, _ in store.current.adapters.values()]
    assert f"{first},{second}" in text
    (turned / "serve.sh").write_text(text.replace(f"{first},{second}", f"{second},{first}"))
    server = Server(program, tmp_path / "log", options=["--threads", "1"], environment={})
    asked = [sample.messages for task in (colours, numbers) for sample in task.test]
    groups = ["g1"] * len(colours.test) + ["g2"] * len(numbers.test)
    adapters = store.current.adapters

    def said(keys):
        return learned.host.generate([list(m) for m in asked], keys, max_new_tokens=8)

    wanted, plain = said([adapters[group] for group in groups]), said([None] * len(groups))
    other = said([adapters["g2" if group == "g1" else "g1"] for group in groups])
    assert all(len({*three}) > 1 for three in zip(wanted, plain, other, strict=True))

    async def check(url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for i, messages in enumerate(asked):
                for model in ("assistant", groups[i], "base"):
                    got = await ask_until_known(client, model, messages)
                    text = got.json()["choices"][0]["message"]["content"].strip()
                    right = (plain if model == "base" else wanted)[i]
                    # The last character may be half there, which llama.cpp keeps to itself.
                    assert text.rstrip("\ufffd") == right.rstrip("\ufffd"), (model, i)
                    if model != "base":
                        assert got.headers["x-lcia-group"] == groups[i]

    try:
        await server.start(tmp_path / "out")
        # It looks by itself once a minute: it does not hear that the server starts anew.
        with gateway_before(store, [server.url], check_s=60.0) as (url, _):
            await check(url)
            server.signal(signal.SIGKILL)
            await server.ended()
            await server.start(turned)
            await check(url)
    finally:
        if server._process is not None:
            server.signal(signal.SIGKILL)


async def ask_until_known(client, model, messages):
    """Ask; a gateway that finds a server changed says so once, and knows it then."""
    body = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "max_tokens": 8,
        "temperature": 0,
        "lora": [{"id": 0, "scale": 5.0}],  # the gateway decides
    }
    for _ in range(3):
        answer = await client.post("/v1/chat/completions", json=body)
        if answer.status_code == 200:
            return answer
        assert answer.status_code == 503, answer.text
    raise AssertionError(answer.text)


def test_an_adapter_on_an_output_layer_that_is_the_embedding_too_is_refused(tmp_path):
    model = model_of(tokenizer_of(), tie_word_embeddings=True)
    rank = {"down": torch.ones(2, 64), "up": torch.ones(2, len(tokenizer_of()))}
    factors = Factors(modules={"lm_head": (rank["down"], rank["up"])}, rank=2)
    with pytest.raises(StoreError, match=r"group g1: adapts lm_head.*--format peft"):
        write_adapter(factors, model, tmp_path / "a.gguf", name="g1")
    assert not (tmp_path / "a.gguf").exists()
