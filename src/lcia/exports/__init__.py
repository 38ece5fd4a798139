"""An assistant for other tools: adapters for vLLM and peft, merged models, model cards."""
