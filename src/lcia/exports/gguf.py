"""GGUF files for llama.cpp and what is built on it.

Either one per group, with an Ollama Modelfile, or the base model once and an adapter per group
beside it, for llama.cpp's server.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.exports.folder import check_plain, write_card, write_export, write_script
from lcia.exports.ollama import modelfile
from lcia.exports.peft import Told, merged_groups
from lcia.learner import Store, Version
from lcia.learner.learning import template_settings
from lcia.models.chat import ChatFormat
from lcia.models.host import chat_format
from lcia.models.loading import BaseModel, load_model
from lcia.serving.engine.bank import Factors, read_factors
from lcia.serving.live import BASE

FILE = "model.gguf"

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}{{ '\n' }}"
)
"""What lcia does without a chat template, as one."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTERS: Mapping[tuple[tuple[str, ...], bool], str] = {
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((_WORDS, "bytes"), True): "llama-bpe",
    ((_WORDS.replace("{1,3}", ""), "bytes"), False): "qwen2",
}
"""How a tokenizer cuts text before it merges, and whether whole words need no merging: its name."""

STATIC = ("default", "linear", "llama3")
"""Kinds of rotary embeddings whose frequencies do not depend on a prompt's length."""


def export_gguf(
    store: Store, folder: Path, *, ollama: bool = False, told: Told | None = None
) -> dict[str, Any]:
    """Write one GGUF model per group, of the base model's dtype, with a model card.

    Args:
        store: the assistant.
        folder: new or empty; gets one folder per group, named like it.
        ollama: write a Modelfile beside each.
        told: is told how far it is.

    Returns:
        What ``lcia.json`` says; ``stop`` is what ends an answer, ``difference`` as of
        ``export_merged``.

    Raises:
        StoreError: ``folder`` is not empty, nothing is learned, a group cannot be merged, or the
            base model is one that cannot be written so.
    """

    def write(version: Version, draft: Path) -> dict[str, Any]:
        about: dict[str, Any] = {"model": store.config.model, "difference": {}}
        check = partial(vocabulary, store, ollama=ollama)
        for group, base, merged, share in merged_groups(store, version, told=told, check=check):
            tokens = vocabulary(store, base, ollama=ollama)
            (draft / group).mkdir()
            write_gguf(merged, tokens, draft / group / FILE, name=f"{store.root.name}-{group}")
            about["difference"][group], about["stop"] = share, tokens.stops
            if ollama:
                text = modelfile(FILE, tokens)
                (draft / group / "Modelfile").write_text(text, encoding="utf-8")
            write_card(store, version, draft / group, groups=[group], relation="merge")
        return about

    return write_export(store, folder, write, relation="merge")


class Vocabulary:
    """What a GGUF file says about tokens and prompts.

    Args:
        chat: of the base model.
        template: the chat template in force, as Jinja.

    Attributes:
        template: see there.
        splitter: llama.cpp's name for how text is cut before it is merged.
        stops: texts that each end an answer.
        adds_start: whether llama.cpp writes the start token: the template's is then left out.

    Raises:
        StoreError: the tokenizer works in a way that llama.cpp is not known to share.
    """

    def __init__(self, chat: ChatFormat, *, template: str) -> None:
        self.tokenizer = chat.tokenizer
        self.template = template
        self.ending = chat.answering.ending
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        self._state = json.loads(backend.to_str()) if backend is not None else {}
        self.splitter = self._find_splitter()
        self.start = self.tokenizer.bos_token
        before = chat.encoder.before == [self.tokenizer.bos_token_id]
        self.adds_start = before and self.rendered([("user", "a")]).startswith(self.start)
        texts = [self.tokenizer.convert_ids_to_tokens(number) for number in self.ending.stop_ids]
        self.stops = [*texts, *self.ending.stop_strings]

    def rendered(self, turns: list[tuple[str, str]], *, cue: bool = False) -> str:
        """Return a conversation of roles and texts as the chat template writes it."""
        messages = [{"role": role, "content": content} for role, content in turns]
        options: dict[str, Any] = {"chat_template": self.template, "add_generation_prompt": cue}
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def write(self, writer: Any, *, rows: int) -> None:
        """Write it into a GGUF file.

        Args:
            writer: ``gguf.GGUFWriter``.
            rows: of the model's embedding; those beyond the tokenizer's get tokens of no use.
        """
        from gguf import TokenType

        added = self.tokenizer.added_tokens_decoder
        texts, kinds = [], []
        for number in range(rows):
            text = self.tokenizer.convert_ids_to_tokens(number)
            kind = TokenType.UNUSED if text is None else TokenType.NORMAL
            if number in added:
                kind = TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED
            texts.append(f"[unused{number}]" if text is None else text)
            kinds.append(kind)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.splitter)
        writer.add_token_list(texts)
        writer.add_token_types(kinds)
        writer.add_token_merges([" ".join(_pair(pair)) for pair in self._state["model"]["merges"]])
        writer.add_add_bos_token(self.adds_start)
        writer.add_chat_template(self.template)
        for name in ("bos", "pad", "unk"):
            number = getattr(self.tokenizer, f"{name}_token_id")
            if number is not None:
                getattr(writer, f"add_{name}_token_id")(number)
        places = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
        for add, number in zip(places, self._stop_ids(len(places)), strict=False):
            add(number)

    def _stop_ids(self, places: int) -> list[int]:
        """Return the tokens that end an answer, the tokenizer's end token first."""
        last = self.tokenizer.eos_token_id
        stops = sorted(self.ending.stop_ids, key=lambda number: (number != last, number))
        if len(stops) > places:
            raise StoreError(
                f"model: {len(stops)} tokens end an answer ({', '.join(self.stops)}); a GGUF file "
                f"has places for {places}. Export it with --format merged."
            )
        return stops

    def _find_splitter(self) -> str:
        model = self._state.get("model", {})
        plain = not any(
            model.get(key)
            for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
        )
        found = None
        merges = model.get("type") == "BPE" and model["merges"] and plain
        if merges and self._state["normalizer"] is None:
            steps = tuple(_steps(self._state["pre_tokenizer"] or {"type": "nothing"}))
            found = SPLITTERS.get((steps, bool(model.get("ignore_merges"))))
        if found is None:
            raise StoreError(
                "model: its tokenizer is none of those that llama.cpp is known to read alike: "
                f"byte-level BPE as in {', '.join(SPLITTERS.values())}. Export it with --format "
                "merged, and convert that with llama.cpp's convert_hf_to_gguf.py."
            )
        return found


def write_gguf(model: Any, tokens: Vocabulary, path: Path, *, name: str) -> None:
    """Write a model of the Llama architecture.

    Matrices keep their dtype, vectors are float32.

    Args:
        model: a ``LlamaForCausalLM``.
        tokens: of its tokenizer.
        path: of the file.
        name: of the model.

    Raises:
        StoreError: it is another model, or llama.cpp cannot compute what it does.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    rows, width = model.get_input_embeddings().weight.shape
    head = config.head_dim
    writer.add_vocab_size(rows)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    kinds = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    kind = kinds[str(model.dtype).removeprefix("torch.")]
    writer.add_file_type(gguf.LlamaFileType[kind])
    tokens.write(writer, rows=rows)
    _add_frequencies(writer, model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for key, tensor in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise StoreError(f"model: a Llama model of llama.cpp has no place for {key}.")
        add_tensor(writer, found, reordered(config, key, tensor))
    write_file(writer)


def write_file(writer: Any) -> None:
    """Write the file of a ``gguf.GGUFWriter`` that has been told all of it."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def add_tensor(writer: Any, name: str, tensor: Any) -> None:
    """Add a tensor; numpy has no bfloat16, so that its bytes are told to be that."""
    import gguf
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.ndim == 1:
        writer.add_tensor(name, tensor.float().numpy())
    elif tensor.dtype == torch.bfloat16:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=kind)
    else:
        writer.add_tensor(name, tensor.numpy())


def reordered(config: Any, key: str, rows: Any) -> Any:
    """Return a weight's rows in llama.cpp's order, where that is another one.

    Queries and keys are turned by their place: llama.cpp turns neighbours, transformers the two
    halves of a head.

    Args:
        config: of the model.
        key: the weight's name, or its module's.
        rows: shape (heads · size, ...).
    """
    if ".q_proj" in key:
        heads = config.num_attention_heads
    elif ".k_proj" in key:
        heads = config.num_key_value_heads
    else:
        return rows
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _add_frequencies(writer: Any, model: Any) -> None:
    """Write by what the rotary frequencies are divided, where they are scaled."""
    import torch

    config = model.config
    powers = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = config.rope_parameters["rope_theta"] ** -powers
    divided = plain / model.model.rotary_emb.inv_freq.float().cpu()
    if not torch.allclose(divided, torch.ones_like(divided)):
        writer.add_tensor("rope_freqs.weight", divided.numpy())


def check_llama(config: Any) -> None:
    """Refuse a model that a GGUF file of the Llama architecture cannot hold.

    Raises:
        StoreError: it is another model, or computes something else.
    """
    if config.model_type != "llama":
        raise StoreError(
            f"model: is a {config.model_type}; GGUF files are written of Llama models. Export it "
            "with --format merged, and convert that with llama.cpp's convert_hf_to_gguf.py."
        )
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in STATIC or config.hidden_act != "silu":
        what = f"hidden_act {config.hidden_act}" if kind in STATIC else f"rope_type {kind}"
        raise StoreError(
            f"model: has {what}; a GGUF file can say {', '.join(STATIC)} and silu. Export it with "
            "--format merged."
        )


def _steps(state: Mapping[str, Any]) -> list[str]:
    """Return how a tokenizer cuts text, step by step."""
    kind = state["type"]
    if kind == "Sequence":
        return [step for part in state["pretokenizers"] for step in _steps(part)]
    if kind == "ByteLevel" and not state["add_prefix_space"]:
        return ["words" if state["use_regex"] else "bytes"]
    if kind == "Digits" and state["individual_digits"]:
        return ["digits"]
    if kind == "Split" and state["behavior"] == "Isolated" and not state["invert"]:
        return [state["pattern"].get("Regex", kind)]
    return [kind]


def _pair(merge: Any) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def vocabulary(store: Store, base: BaseModel, *, ollama: bool) -> Vocabulary:
    """Return what is said about tokens and prompts, if the base model can be written at all."""
    check_llama(base.model.config)
    chat = chat_format(
        base,
        max_prompt_tokens=store.config.generation.max_prompt_tokens,
        template=template_settings(store.config),
    )
    tokens = Vocabulary(chat, template=_template(chat))
    if ollama:
        modelfile(FILE, tokens)
    elif tokens.ending.stop_strings:
        last = tokens.ending.stop_strings[0]
        raise StoreError(
            f"model: its answers end with {last!r}, which is no token, and a GGUF file has no "
            "place for that. Export it with --format ollama."
        )
    return tokens


def _template(chat: ChatFormat) -> str:
    """Return the chat template in force, with the settings that it is rendered with."""
    written = chat.template.chosen(chat.tokenizer.chat_template) or PLAIN
    if not isinstance(written, str):
        raise StoreError("model: has several chat templates; a GGUF file is written of one.")
    said = "".join(
        f"{{% set {name} = {_literal(value)} %}}" for name, value in chat.template.kwargs.items()
    )
    return said + chat.template.dated(written)


def _literal(value: Any) -> str:
    """Return a setting as Jinja writes it, which is nearly as JSON."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


WHOLE, ADAPTERS = "base.gguf", "adapters"

SLOTS = 4
"""Requests that llama.cpp answers at once; those of different groups take turns."""


def export_llama_cpp(store: Store, folder: Path) -> dict[str, Any]:
    """Write the base model and the current version's adapters as GGUF files, and ``serve.sh``.

    Each adapter is a file of its group and version, ``g1@0002.gguf``: llama.cpp tells clients what
    it read an adapter from, and so the gateway knows which version a server has. A server needs the
    weights of the base model once, whatever the number of groups.

    Args:
        store: the assistant.
        folder: new or empty.

    Returns:
        What ``lcia.json`` says; ``stop`` is what ends an answer.

    Raises:
        StoreError: ``folder`` is not empty, nothing is learned, the base model is one that cannot
            be written so, or llama.cpp cannot apply a group's adapter.
    """
    return write_export(store, folder, lambda version, draft: _write_all(store, version, draft))


def _write_all(store: Store, version: Version, draft: Path) -> dict[str, Any]:
    import torch

    for group, (_, adapter) in version.adapters.items():
        check_plain(group, adapter, reader="llama.cpp")
    base = load_model(store.config.model, dtype=store.config.dtype)
    tokens = vocabulary(store, base, ollama=False)
    about: dict[str, Any] = {"assistant": store.root.resolve().name, "version": version.number}
    (draft / ADAPTERS).mkdir()
    for group, (key, adapter) in version.adapters.items():
        factors = read_factors(adapter, dtype=torch.float32, device="cpu")
        path = draft / ADAPTERS / f"{key}.gguf"
        write_adapter(factors, base.model, path, name=group)
    write_gguf(base.model, tokens, draft / WHOLE, name=about["assistant"])  # nothing is refused now
    files = ",".join(f"{ADAPTERS}/{key}.gguf" for key, _ in version.adapters.values())
    options = [
        f"--model {WHOLE}",
        f"--alias {BASE}",
        f"--lora {files}",
        "--lora-init-without-apply",
        f"--jinja --parallel {SLOTS} --port 8000",
    ]
    write_script(draft, about, tool="llama.cpp", command="exec llama-server", options=options)
    return {**about, "model": store.config.model, "stop": tokens.stops}


def write_adapter(factors: Factors, model: Any, path: Path, *, name: str) -> None:
    """Write one adapter of a Llama model; its factors hold its scaling, so no alpha is said.

    Args:
        factors: of the adapter.
        model: the base model.
        path: of the file.
        name: of the adapter.

    Raises:
        StoreError: it changes a module that llama.cpp has no place for.
    """
    import gguf

    config = model.config
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for module, (down, up) in factors.modules.items():
        found = names.get_name(module)
        if found is None or (found == "output" and tied):
            raise StoreError(
                f"group {name}: adapts {module}, for which this model has no place in llama.cpp. "
                "Export it with --format peft."
            )
        add_tensor(writer, f"{found}.weight.lora_a", down)
        add_tensor(writer, f"{found}.weight.lora_b", reordered(config, module, up.T))
    write_file(writer)
