"""Balance rules: how much of the new parameters enters the average at a step.

Sign convention: beta is the weight of the old average, theta* <- beta theta* + (1 - beta) theta.
Rules return ``gain`` = 1 - beta, the weight of the new parameters: gains of 1e-5 are common, and
1 - 1e-5 in float32 keeps only three of their digits.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcia.errors import ConfigError
from lcia.registry import RULES, nearest

Sums = Mapping[str, Tensor]

STEP_L1 = "step_l1"
"""|theta_{t-1} - theta_{t-2}|: measured at update t - 1, where that step is the last one."""


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """What a balance rule says: the sums it reads and the gain it makes of them.

    With theta the parameters after optimizer step t, theta* the average before its update, g the
    gradient of the step, d = theta_t - theta*, y = g_t - g_{t-1} and s = theta_{t-1} -
    theta_{t-2}, per tensor. A step uses the gradient at the parameters before it, so y is the
    change of the gradient along s, the step before the last.

    Attributes:
        terms: names of the sums the rule needs, keys of ``lcia.ema.reduce.TERMS``.
        curvature_term: the sum that measures curvature; the closed form has no meaning where
            it is not positive. None: the rule is not adaptive and never falls back.
        fallback: gain (1 - beta) where the closed form does not apply, in (0, 1).
    """

    terms: ClassVar[tuple[str, ...]]
    curvature_term: ClassVar[str | None] = "grad_change_l1"

    fallback: float = 0.01

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check(self, setting)

    @property
    def needs_gradients(self) -> bool:
        """Whether the rule reads gradients at all."""
        return self.curvature_term is not None

    @property
    def needs_previous_parameters(self) -> bool:
        """Whether theta_{t-1} has to be kept, at the cost of one more copy of the parameters."""
        return any("step" in term for term in self.terms)

    @property
    def needs_previous_step(self) -> bool:
        """Whether theta_{t-2} has to be kept, too: of a step's L1 norm a number is kept instead."""
        return any("step" in term for term in self.terms if term != STEP_L1)

    def for_training(self, max_steps: int | None = None) -> "Rule":
        """Return the rule for a training of ``max_steps`` updates; most do not depend on them.

        Args:
            max_steps: updates of the whole training, None where the caller does not know.
        """
        return self

    @abstractmethod
    def gain(self, sums: Sums, *, step: int) -> Tensor:
        """Return 1 - beta of the closed form, one value per tensor, unclipped.

        Args:
            sums: the rule's terms and ``drift_l1``, each of shape (tensors,).
            step: updates so far, this one included.
        """


@dataclass(frozen=True, kw_only=True)
class Paper(Rule):
    """The paper's closed form: beta = (1 + |g|) |s| / (|d| |y|), L1 norms.

    Minimises F(beta) = -beta d L' + beta^2 d^2 L'' / 2 + (1 - beta) d, whose minimum is
    beta = (L' + 1) / (d L''), with L'' by the difference quotient |y| / |s|. A growing drift
    moves theta* towards the new parameters.

    Args:
        fallback: gain where beta is outside (0, 1); 0.01, that is beta = 0.99, as in the paper.

    Source: LCIA (arXiv:2410.10868), closed form after the Taylor expansion.
    """

    terms = ("grad_change_l1", "grad_l1", STEP_L1, "drift_l1")

    def gain(self, sums: Sums, *, step: int) -> Tensor:
        """Return 1 - (1 + |g|) |s| / (|d| |y|), shape (tensors,), unclipped."""
        beta = (1 + sums["grad_l1"]) / sums["drift_l1"] * (sums["step_l1"] / sums["grad_change_l1"])
        return 1 - beta


@dataclass(frozen=True, kw_only=True)
class Release(Rule):
    """The authors' released code: 1 - beta = scale (1 + |g|) / (|d| |y|), L1 norms.

    Args:
        scale: the constant that stands for the step length |s|; 2 in the released code.
        fallback: gain where 1 - beta is outside (0, 1); 0.01 in the released code.

    Source: the code released with LCIA (arXiv:2410.10868).
    Differs from source: the paper's expression weights the *old* average and holds |s|; the
        released code weights the *new* parameters with it, so that a growing drift keeps the old.
    """

    terms = ("grad_change_l1", "grad_l1", "drift_l1")

    scale: float = 2.0

    def gain(self, sums: Sums, *, step: int) -> Tensor:
        """Return scale (1 + |g|) / (|d| |y|), shape (tensors,), unclipped."""
        return self.scale * (1 + sums["grad_l1"]) / sums["drift_l1"] / sums["grad_change_l1"]


@dataclass(frozen=True, kw_only=True)
class Toolkit(Release):
    """The authors' later toolkit: 1 - beta = 0.01 (1 + |g|) / (|d| |y|), fallback 0.001.

    Args:
        scale: the constant that stands for the step length |s|; 0.01 in the later toolkit.
        fallback: gain where 1 - beta is outside (0, 1); 0.001 in the later toolkit.

    Source: the authors' later toolkit.
    """

    scale: float = 0.01
    fallback: float = 0.001


@dataclass(frozen=True, kw_only=True)
class Fixed(Rule):
    """Plain EMA, the baseline: beta constant, no gradients needed.

    Args:
        beta: weight of the old average, in (0, 1).
    """

    terms = ()
    curvature_term = None

    beta: float = 0.99
    fallback: float = field(default=0.01, init=False)  # never used: no step falls back

    def gain(self, sums: Sums, *, step: int) -> Tensor:
        """Return 1 - beta for every tensor, shape (tensors,)."""
        return torch.full_like(sums["drift_l1"], 1 - self.beta)


def build_rule(rule: Rule | Mapping[str, Any] | str) -> Rule:
    """Return a rule from a rule, a name, or a mapping such as ``{"name": "release", "scale": 2}``.

    Raises:
        ConfigError: the name or a key is unknown (the nearest one is given), or a value is out
            of range.
    """
    if isinstance(rule, Rule):
        return rule
    config = {"name": rule} if isinstance(rule, str) else dict(rule)
    if "name" not in config:
        raise ConfigError(f"rule: {config} has no 'name'; expected one of {RULES.names()}.")
    name = config.pop("name")
    cls: type[Rule] = RULES.get(name)
    known = [setting.name for setting in fields(cls) if setting.init]
    for key in config:
        if key not in known:
            raise ConfigError(f"rule.{key} is not a setting of '{name}'. {nearest(key, known)}")
    return cls(**config)


def _check(rule: Rule, setting: Field[Any]) -> None:
    name, value = setting.name, getattr(rule, setting.name)
    if value is None and setting.default is None:
        return
    limit = 1.0 if name in ("fallback", "beta") else float("inf")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < limit:
        raise ConfigError(
            f"rule.{name} is {value!r}; expected a number in (0, {limit:g}). "
            f"Note: 'fallback' is 1 - beta, the weight of the new parameters."
        )
