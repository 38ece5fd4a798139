"""Write five classification tasks of Super-NaturalInstructions under two instructions.

python shared_instructions.py .../natural-instructions/tasks FOLDER

The task files have an instruction each; here three tasks share one and two the other, so that a
prompt's instruction does not say which task it is of. What tells them apart is their input.
"""

import json
import sys
from pathlib import Path

CHOOSE = "Read the text and choose the option that describes it best. Answer with that option only."
JUDGE = "Judge whether the statement about the text is right. Answer with Yes or No only."
TASKS = {
    "agnews": (
        "task379_agnews_topic_classification",
        CHOOSE,
        "{input}\nOptions: World, Sports, Business, Sci/Tech",
    ),
    "xreact": (
        "task1203_atomic_classification_xreact",
        JUDGE,
        "{input}\nStatement: PersonX may feel what the tail says.",
    ),
    "air_dialogue": (
        "task573_air_dialogue_classification",
        CHOOSE,
        "{input}\nOptions: book, cancel, no_flight, no_reservation",
    ),
    "deal": (
        "task1384_deal_or_no_dialog_classification",
        JUDGE,
        "{input}\nStatement: Both agree to the deal.",
    ),
    "ethos": (
        "task1607_ethos_text_classification",
        CHOOSE,
        "{input}\nOptions: religious hate, not religious hate",
    ),
}
"""Task to its file, its instruction, and what surrounds its input."""


def main(source: Path, target: Path) -> None:
    """Write one file in alpaca's format a task."""
    target.mkdir(parents=True, exist_ok=True)
    for name, (file, instruction, frame) in TASKS.items():
        path = source / f"{file}.json"
        instances = json.loads(path.read_text(encoding="utf-8"))["Instances"]
        lines = [
            json.dumps(
                {
                    "instruction": instruction,
                    "input": frame.format(input=instance["input"]),
                    "output": instance["output"][0],
                },
                ensure_ascii=False,
            )
            for instance in instances
        ]
        (target / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
