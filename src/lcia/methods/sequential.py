"""Sequential fine-tuning: the baseline that forgets."""

from lcia.methods.base import Method


class Sequential(Method):
    """One LoRA adapter trained on one task after another, nothing protected."""
