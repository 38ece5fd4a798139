"""How a text is split into terms: the paper's way, and one for all languages."""

import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise

Terms = Callable[[str], list[str]]

_WORD = re.compile(r"(?u)\b\w\w+\b")
# Marks and joiners are not \w, so accents and vowel signs would cut the words of these scripts.
MARKS = (
    "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u0900-\u0963\u0966-\u0dff\u200c\u200d"
)
# Scripts written without spaces: kana, Han, Thai, Lao, Burmese, Khmer.
UNSPACED = (
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_RUN = re.compile(f"[{UNSPACED}]+|(?:(?![{UNSPACED}])[\\w{MARKS}])+")
_is_unspaced = re.compile(f"[{UNSPACED}]").match
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2060\ufeff\ud800-\udfff]+")

# Written out, not imported from scikit-learn: importing that takes a second, and a list that
# changed under a stored codebook would change its decisions. A test holds the two equal.
# Source: the list of the Glasgow Information Retrieval group, in the form scikit-learn uses.
_STOP_LIST = """
a about above across after afterwards again against all almost alone along already also although
always am among amongst amoungst amount an and another any anyhow anyone anything anyway
anywhere are around as at back be became because become becomes becoming been before beforehand
behind being below beside besides between beyond bill both bottom but by call can cannot cant co
con could couldnt cry de describe detail do done down due during each eg eight either eleven
else elsewhere empty enough etc even ever every everyone everything everywhere except few
fifteen fifty fill find fire first five for former formerly forty found four from front full
further get give go had has hasnt have he hence her here hereafter hereby herein hereupon hers
herself him himself his how however hundred i ie if in inc indeed interest into is it its itself
keep last latter latterly least less ltd made many may me meanwhile might mill mine more
moreover most mostly move much must my myself name namely neither never nevertheless next nine
no nobody none noone nor not nothing now nowhere of off often on once one only onto or other
others otherwise our ours ourselves out over own part per perhaps please put rather re same see
seem seemed seeming seems serious several she should show side since sincere six sixty so some
somehow someone something sometime sometimes somewhere still such system take ten than that the
their them themselves then thence there thereafter thereby therefore therein thereupon these
they thick thin third this those though three through throughout thru thus to together too top
toward towards twelve twenty two un under until up upon us very via was we well were what
whatever when whence whenever where whereafter whereas whereby wherein whereupon wherever
whether which while whither who whoever whole whom whose why will with within without would yet
you your yours yourself yourselves
"""

STOP_WORDS = frozenset(_STOP_LIST.split())


def paper_terms(text: str) -> list[str]:
    """Split ``text`` as the paper does: lower case, words of two or more, no stop words."""
    return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


def unicode_terms(text: str) -> list[str]:
    """Split ``text`` in any language.

    Compatibility forms and case are folded, control characters separate words, and scripts written
    without spaces give pairs of neighbouring characters. English stop words and single letters
    are left out, as in `paper_terms`.
    """
    folded = unicodedata.normalize("NFKC", _CONTROL.sub(" ", text)).casefold()
    terms: list[str] = []
    for run in _RUN.findall(folded):
        if _is_unspaced(run[0]):
            terms.extend(map("".join, pairwise(run)) if len(run) > 1 else [run])
        elif len(run) > 1 and run not in STOP_WORDS:
            terms.append(run)
    return terms


def normalized(text: str) -> str:
    """Return ``text`` in lower case with every run of white space as one space."""
    return " ".join(text.lower().split())
