"""Two real vLLM servers behind the gateway, disturbed while clients ask.

LCIA_VLLM says where the program vllm is, in an environment of its own; CONTRIBUTING.md says how to
get one that runs on a CPU.
"""

import asyncio

import pytest

from benchmarks.serving_vllm import VLLM, program, run

pytestmark = pytest.mark.slow


@pytest.mark.skipif(program() is None, reason=f"vLLM is not on the path; {VLLM} names the program")
def test_two_vllm_servers_never_answer_with_a_wrong_version_nor_fail_needlessly(tmp_path):
    found = asyncio.run(run(program(), tmp_path, calm_s=6))
    assert found["wrong_versions"] == []
    assert found["avoidable_failures"] == []
    assert found["total"]["right"] > 100
    assert all(counts["right"] for counts in found["phases"].values())
    assert len(found["phases"]) == 6
