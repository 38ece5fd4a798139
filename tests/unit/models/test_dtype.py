"""``dtype: auto`` is bfloat16 only where that is the faster one."""

import pytest
import torch

from lcia.errors import ConfigError
from lcia.models import resolve_dtype


@pytest.mark.parametrize(
    ("cpu", "dtype"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "float32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bfloat16"),
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_goes_by_the_processor(cpu, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    assert resolve_dtype("auto") == dtype


def test_other_dtypes_are_refused():
    with pytest.raises(ConfigError, match="'int8' is not known"):
        resolve_dtype("int8")
