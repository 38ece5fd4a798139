"""Data files: valid ones of every format, with something wrong in them."""

import bz2
import gzip
import json

from fuzz.values import mutated

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Capital of Peru?"},
    {"role": "assistant", "content": "Lima", "weight": 1},
]
RECORDS = (
    {"id": "a", "messages": CHAT, "answers": ["Lima"], "instruction": "Capital"},
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "What?"}, {"type": "image", "image": "x.png"}],
            },
            CHAT[2],
        ]
    },
    {"prompt": "Capital of Peru?", "completion": ["Lima", "lima"], "system": "Be brief."},
    {"prompt": CHAT[:2], "completion": CHAT[2:], "answers": ["Lima"]},
    {"instruction": "Translate.", "input": "cat", "output": "Katze", "history": [["a", "b"]]},
    {"Definition": ["Name."], "Instances": [{"id": "i", "input": "Peru", "output": ["Lima"]}]},
    {
        "id": "1",
        "image": ["x.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "cat"},
            {"from": "human", "value": "And?"},
            {"from": "gpt", "value": "dog", "weight": 0},
        ],
    },
    {"question_id": 7, "image": "x.png", "text": "What?", "answer": ["a", "a"]},
)
KEYS = (
    *(
        "messages",
        "prompt",
        "completion",
        "conversations",
        "role",
        "content",
        "from",
        "value",
        "id",
    ),
    *("weight", "label", "tools", "tool_calls", "history", "system", "image", "images", "text"),
    *("Instances", "Definition", "answers", "answer", "question_id", "input", "output", "type"),
)
RAW = (b"NaN", b"-Infinity", b"1e999", b"9" * 6000, b"[" * 100_000, b'{"a":' * 50_000, b"null")
BYTES = (b"\x00", b"\xff", b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\x80", b"\\ud800", b"\r", b"\n",
         b"\xef\xbb\xbf", b'"', b"{", b"}", b",", b"\xf0\x9f", b"\x1b[2J")  # fmt: skip
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")
MAGIC = (b"PK\x03\x04", b"PAR1", b"ARROW1", b"\x28\xb5\x2f\xfd", b"\x80\x04", b"\x89PNG\r\n")


def content(random):
    """The bytes of a data file."""
    record = random.choice(RECORDS)
    count = random.choice((1, 2, 6, 12))
    records = [mutated(random, record, keys=KEYS) for _ in range(count)]
    if random.random() < 0.2:
        records[random.randrange(count)] = mutated(random, random.choice(RECORDS), keys=KEYS)
    ascii_only = random.random() < 0.5
    if random.random() < 0.7:
        text = "\n".join(json.dumps(one, ensure_ascii=ascii_only) for one in records) + "\n"
    else:
        text = json.dumps(records, ensure_ascii=ascii_only, indent=random.choice((None, 2)))
    if random.random() < 0.1:
        text = text.replace("\n", "\r\n")
    written = text.encode(random.choice(ENCODINGS), "replace")
    return _damaged(random, written) if random.random() < 0.5 else written


def _damaged(random, written):
    at = random.randrange(len(written) + 1)
    change = random.randrange(10)
    if change == 0:
        return written[:at]
    if change == 1:
        return random.choice((b"", b" ", b"\n\n", b"[]", b"{}", b"null", b"\xef\xbb\xbf", b"[" * 9))
    if change == 2:
        return random.choice((gzip.compress, bz2.compress))(written)
    if change == 3:
        return random.choice(MAGIC) + written
    if change == 4 and b":" in written:
        head, _, tail = written.partition(b": ")
        return head + b": " + random.choice(RAW) + tail[tail.find(b",") :]
    if change == 5:
        return written.replace(b'{"', b'{"id": 1, "id": 2, "', 1)
    if change == 6:
        return written[:at] + random.randbytes(20) + written[at:]
    if change == 7:
        return b"prompt,completion\n" + written
    if change == 8 and written:
        i = random.randrange(len(written))
        return written[:i] + bytes([written[i] ^ (1 << random.randrange(8))]) + written[i + 1 :]
    return written[:at] + random.choice(BYTES) + written[at:]
