"""A few hundred of the generated inputs; ``python -m fuzz.cases`` tries 10,000."""

import pytest

from fuzz.cases import KINDS, cases
from fuzz.place import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    return Place(tmp_path_factory.mktemp("fuzz"), tiny_model)


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_ends_in_a_traceback_a_hang_or_a_changed_store(place, kind):
    wrong, tried = [], 0
    for name, case in cases(place, 250, seed=1, kinds=[kind]):
        tried += 1
        problem = case()
        if problem is not None:
            wrong.append(f"{name}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert tried >= 50
