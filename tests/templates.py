"""Chat templates of the shapes that are about, and byte-level tokenizers to go with them."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin|>{% for m in messages %}<|start_header|>{{ m['role'] }}<|end_header|>\n\n"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header|>assistant<|end_header|>\n\n{% endif %}"
)
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + LLAMA3
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
ENDLESS = (  # no turn end: the next turn begins where an answer stops
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}{% set text = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
REASONING = (  # its prompt opens a thought that its answered turns do not have
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
PLAIN = None

CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
SHAPES = {
    "chatml": (CHATML, CHAT_TOKENS),
    "llama3": (LLAMA3, ("<|begin|>", "<|start_header|>", "<|end_header|>", "<|eot|>")),
    "dated": (DATED, ("<|begin|>", "<|start_header|>", "<|end_header|>", "<|eot|>")),
    "llama2": (LLAMA2, ("<s>", "</s>")),
    "mistral": (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]")),
    "phi3": (PHI3, ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")),
    "endless": (ENDLESS, ("<|user|>", "<|assistant|>", "<|system|>")),
    "gemma": (GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    "thinking": (THINKING, CHAT_TOKENS),
    "reasoning": (REASONING, ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")),
    "plain": (PLAIN, ()),
}


def byte_tokenizer(template=None, specials=(), *, words=(), **options):
    """Return a tokenizer of bytes with special tokens, and words it knows but calls ordinary.

    ``<|endoftext|>`` is its end and its padding unless ``options`` say otherwise.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    named = ["<|endoftext|>", *specials]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(named + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(named)
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | options
    ends = {name: token for name, token in ends.items() if token is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **ends)
    tokenizer.chat_template = template
    return tokenizer


def shaped(name):
    """Return a tokenizer with the template of that shape."""
    template, specials = SHAPES[name]
    words = ("<think>", "</think>") if name in {"thinking", "reasoning"} else ()
    return byte_tokenizer(template, specials, words=words)


def tiny_llama(tokenizer, **options):
    """Return a two-layer Llama with a row for each token of a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"max_position_embeddings": 256, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(sizes | layers | ends | options)))
