"""A sample of every part of the campaign; ``make campaign`` runs all of it."""

import pytest

from campaign.driver import Driver
from campaign.inputs import KINDS, cases
from campaign.parts import PARTS
from campaign.place import Place
from campaign.stores import Stores


@pytest.fixture(scope="module")
def stores(tiny_model):
    driver = Driver()
    yield Stores(driver, tiny_model)
    driver.close()


@pytest.mark.parametrize("part", [p for p in PARTS if p.quick], ids=lambda part: part.name)
def test_a_sample_of_the_campaign(stores, part):
    tried, wrong = 0, []
    for name, case in part.cases(stores, part.quick):
        tried += 1
        problem = case()
        if problem is not None:
            wrong.append(f"{name}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert tried


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
