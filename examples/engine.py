"""Answer with two groups of an assistant and with the base model in one batch, without a server.

python examples/engine.py ASSISTANT GROUP GROUP QUESTION
"""

import sys

from lcia.learner import Store, load_host
from lcia.serving.engine import Engine


def main(root: str, first: str, second: str, question: str) -> list[str]:
    """Print and return the answers of both groups and of the base model."""
    store = Store.open(root)
    folders = [store.current.adapters[group][1] for group in (first, second)]
    with Engine(load_host(store.config).base) as engine:
        prompts = [engine.prompt(question, adapter=folder) for folder in (*folders, None)]
        answers = engine.answer(prompts)
    print(*answers, sep="\n")
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:])
