"""Infer a task's instruction: the lines or sentences that recur over its prompts."""

import re
from collections import Counter
from collections.abc import Sequence

_SEGMENT = re.compile(r"[^\n]+?(?:[.!?](?=\s)|$)", re.MULTILINE)
_NUMBERING = re.compile(r"^\W*(?:\d+[.):]\s*)?")


def infer_templates(prompts: Sequence[str], *, min_share: float = 0.05) -> list[str]:
    """Return the segments found in at least ``min_share`` of the prompts (and in two)."""
    seen = Counter(key for prompt in prompts for key in {_key(s): None for s in _segments(prompt)})
    least = max(2, min_share * len(prompts))
    return sorted(key for key, count in seen.items() if count >= least and key)


def find_templates(prompt: str, templates: Sequence[str]) -> str | None:
    """Return the segments of ``prompt`` that are templates, in order; None if there are none."""
    known = set(templates)
    return " ".join(s for s in _segments(prompt) if _key(s) in known) or None


def _segments(prompt: str) -> list[str]:
    return [match.group().strip() for match in _SEGMENT.finditer(prompt)]


def _key(segment: str) -> str:
    return " ".join(_NUMBERING.sub("", segment.lower()).split())
