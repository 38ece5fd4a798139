"""Two real vLLM servers behind the gateway, disturbed or kept in sync while clients ask.

LCIA_VLLM says where the program vllm is, in an environment of its own; CONTRIBUTING.md says how to
get one that runs on a CPU.
"""

import asyncio

import pytest

from benchmarks import serving_vllm, vllm_releases
from benchmarks.serving_vllm import VLLM, program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        program() is None, reason=f"vLLM is not on the path; {VLLM} names the program"
    ),
]


def test_two_vllm_servers_never_answer_with_a_wrong_version_nor_fail_needlessly(tmp_path):
    found = asyncio.run(serving_vllm.run(program(), tmp_path, calm_s=6))
    assert found["wrong_versions"] == []
    assert found["avoidable_failures"] == []
    assert found["total"]["right"] > 100
    assert all(counts["right"] for counts in found["phases"].values())
    assert len(found["phases"]) == 6


def test_releases_and_roll_backs_reach_two_vllm_servers_and_no_request_fails(tmp_path):
    found = asyncio.run(vllm_releases.run(program(), tmp_path, pause_s=1))
    assert found["failed"] == []
    assert found["wrong_answers"] == []
    assert found["wrong_versions"] == []
    assert len(found["by_version"]) == found["releases"] + 1
    assert found["distinct_answers"] > found["releases"]
    assert all("base@zeros" in names for names in found["served_at_the_end"])
