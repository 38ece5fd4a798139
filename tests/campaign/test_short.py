"""A sample of every part of the campaign; ``make campaign`` runs all of it."""

import pytest

from campaign.driver import Driver
from campaign.parts import PARTS
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
