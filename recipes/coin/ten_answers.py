"""Put the ten answers of TextVQA's annotations into CoIN's test file, in place.

python ten_answers.py TextVQA_0.5.1_val.json val.json
"""

import json
import os
import sys
from pathlib import Path


def main(annotations: Path, questions: Path) -> None:
    """Replace each question's ``answer`` by the list of its annotation's ``answers``."""
    found = json.loads(annotations.read_text(encoding="utf-8"))["data"]
    answers = {str(item["question_id"]): item["answers"] for item in found}
    records = json.loads(questions.read_text(encoding="utf-8"))
    missing = [r["question_id"] for r in records if str(r["question_id"]) not in answers]
    if missing:
        sys.exit(f"{annotations}: has no answers for {len(missing)} questions, first {missing[0]}.")
    records = [{**r, "answer": answers[str(r["question_id"])]} for r in records]
    scratch = questions.with_suffix(".tmp")
    scratch.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    os.replace(scratch, questions)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
