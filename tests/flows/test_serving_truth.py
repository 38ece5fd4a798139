"""Every answer is the one its adapter version gives alone, whatever else happens."""

from benchmarks.serving_truth import run
from serving_server import make_versions


def test_every_answer_is_its_versions_own_and_no_request_hangs(tmp_path, tiny_model):
    store = make_versions(tmp_path / "assistant", tiny_model)
    found = run(store, requests=500, seconds=15, swap_s=0.4, often=4.0)
    assert found["wrong"] == []
    assert found["answers_that_differ"] == 0
    assert found["answers_checked"] > 50
    assert found["version_swaps"] > 0
    assert sum(found["faults"].values()) > 0
