"""The folder in which commands are tried: a store, data, a stream, and paths that lead nowhere."""

import json
import os
import shutil
from contextlib import contextmanager

from campaign import inputs
from campaign.command import run
from campaign.inputs import TEXTS

ANSWERS = {
    "colours": ("Say the letter of the colour.", {"red": "r", "green": "g"}),
    "numbers": ("Write this number as a digit.", {"one": "1", "two": "2"}),
}
SETTINGS = (
    *("--set", "training.max_steps=1", "--set", "dtype=float32", "--set", "adapter.r=2"),
    *("--set", "adapter.target_modules=[q_proj]", "--set", "generation.max_prompt_tokens=64"),
)


class Place:
    """A folder with all of it.

    Args:
        folder: an empty one.
        model: a tiny model.
    """

    def __init__(self, folder, model):
        self.folder, self.model = folder, model
        self.store, self.kept = folder / "store", folder / "kept"
        self.work = folder / "work"
        self.work.mkdir()
        for name, (instruction, answers) in ANSWERS.items():
            lines = [
                json.dumps({"prompt": f"{instruction}\n\n{word} {i}", "completion": answer})
                for i in range(6)
                for word, answer in answers.items()
            ]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        made = run(
            *("learn", str(self.store), str(folder / "colours.jsonl"), "--name", "colours"),
            *("--model", str(model), *SETTINGS),
        )
        assert made.code == 0, made.err
        shutil.copytree(self.store, self.kept)
        self.content = _content(self.store)
        self.stream = {
            "model": str(model),
            "tasks": [
                {"name": name, "train": str(folder / f"{name}.jsonl"), "max_new_tokens": 4}
                for name in ANSWERS
            ],
            "methods": ["sequential", {"name": "lcia", "rule": {"name": "fixed", "beta": 0.9}}],
            "grouping": {"threshold": 0.5},
            "adapter": {"r": 2, "target_modules": ["q_proj"]},
            "training": {"max_steps": 1, "learning_rate": 0.01},
            "generation": {"batch_size": 4},
            "gate": {"max_drop": 5},
            "seeds": [0, 1],
            "orders": {"there": list(ANSWERS), "back": [*reversed(ANSWERS)]},
            "output": "out",
        }
        (folder / "stream.yaml").write_text(json.dumps(self.stream))
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to(folder / "loop")
        (folder / "empty").touch()
        self.paths = [
            *(str(self.store), str(folder), str(model), str(folder / "stream.yaml")),
            *(str(folder / f"{name}.jsonl") for name in ANSWERS),
            *(str(folder / name) for name in ("pipe", "loop", "empty", "missing/x", "é\u2028")),
            *("/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "a" * 300, ".", "", "new"),
            *("/proc/none/x", str(folder / "empty" / "x"), str(folder / "\udcff")),
        ]

    def words(self, random):
        """Things to stand anywhere on a command line."""
        texts = [text.replace("\x00", "") for text in TEXTS]
        return random.choice((self.paths, list(inputs.WORDS), texts))

    def data(self, random):
        """Try one data file."""
        path = self.folder / random.choice(("data.jsonl", "data.json", "dätä", "data.csv"))
        path.write_bytes(inputs.content(random))
        options = []
        for option, values in (
            ("--format", ("messages", "llava", "alpaca", "superni", "prompt_completion", "x")),
            ("--role", ("human=user", "user=assistant", "bot=assistant", "a=b", "system=user")),
            ("--images", (str(self.folder), "missing")),
        ):
            if random.random() < 0.15:
                options += [option, random.choice(values)]
        if random.random() < 0.6:
            json_too = ["--json"] if random.random() < 0.3 else []
            return self.tried("data", "check", str(path), *options, *json_too)
        store = random.choice((str(self.store), "new"))
        model = ["--model", str(self.model)] if store != "new" else []
        return self.tried("learn", store, str(path), "--name", "t", *model, *options)

    def config(self, random):
        """Try one stream file."""
        path = self.folder / "fuzzed.yaml"
        written = inputs.text(random, self.stream)
        path.write_bytes(written.encode("utf-8", "surrogatepass"))
        verb = random.choice((("run", "--dry-run"), ("plan",), ("plan", "--json")))
        return self.tried(verb[0], str(path), *verb[1:], *inputs.settings(random))

    def arguments(self, random):
        """Try one command line."""
        return self.tried(*inputs.line(random, self))

    def tried(self, *argv):
        """Run a command; return what is wrong, None if all is well."""
        with _inside(self.work):
            ended = run(*argv)
        problem = ended.problem()
        if _content(self.store) != self.content:
            if ended.code:
                problem = problem or f"the store changed, exit code {ended.code}"
            self.restore()
        if (self.work / "pwned").exists():
            problem = "a tag was run"
        shutil.rmtree(self.work)
        self.work.mkdir()
        return problem and f"{problem}\n    lcia {' '.join(map(repr, argv))}"[:2_000]

    def restore(self):
        """Put the store back."""
        shutil.rmtree(self.store)
        shutil.copytree(self.kept, self.store)


def _content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@contextmanager
def _inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
