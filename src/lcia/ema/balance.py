"""Balance rules: how much of the new parameters enters the average at a step.

Sign convention: beta is the weight of the old average, theta* <- beta theta* + (1 - beta) theta.
Rules return ``gain`` = 1 - beta, the weight of the new parameters: gains of 1e-5 are common, and
1 - 1e-5 in float32 keeps only three of their digits.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
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


@dataclass(frozen=True, kw_only=True)
class Curvature(Rule):
    """beta = (<g, d> + ||d||) / (kappa <d, d>), curvature measured along a step.

    With d = theta - theta*, the update gives theta* - theta = -beta d. A second-order expansion
    of the loss around theta with Hessian kappa I, plus the distance (1 - beta) ||d|| that theta*
    moves, is

        F(beta) = -beta <g, d> + beta^2 kappa <d, d> / 2 + (1 - beta) ||d||,

    the paper's objective with the products of scalars read as inner products. For kappa > 0 it is
    convex; dF/dbeta = -<g, d> + beta kappa <d, d> - ||d|| = 0 gives beta. kappa is the secant
    estimate max(<y, s>, 0) / <s, s> (the scalar of Barzilai and Borwein) over the step s that
    lies between the two gradients, so the rule keeps the sign of g along d, which the L1 norms
    lose, and does not grow with a tensor's size.

    Args:
        fallback: gain (1 - beta) where beta is outside (0, 1) or kappa is not positive.

    Source: derived here from LCIA (arXiv:2410.10868); kappa: Barzilai and Borwein (1988).
    Differs from source: inner products instead of L1 norms.
    """

    terms = ("grad_drift", "drift_sq", "change_step", "step_sq")
    curvature_term = "change_step"

    def gain(self, sums: Sums, *, step: int) -> Tensor:
        """Return 1 - beta, shape (tensors,), unclipped."""
        kappa = sums["change_step"] / sums["step_sq"]
        pull = sums["grad_drift"] / sums["drift_sq"] + sums["drift_sq"].rsqrt()
        return 1 - pull / kappa


@dataclass(frozen=True, kw_only=True)
class Horizon(Rule):
    """The average remembers a share of the task's steps: 1 - beta = 1 / (share max_steps).

    An average with constant beta remembers about 1 / (1 - beta) steps. Which beta protects what
    came before therefore depends on the length of the task; this rule asks for the horizon
    H = max(share max_steps, 1) instead. At update t, counted from 1,

        1 - beta_t = max(1 / (t + 1), 1 / H).

    The first term is the warm-up, beta = 1 - 1/n with n = t + 1 values seen, the starting one
    among them: until t + 1 = H, theta* is the plain mean of the starting theta* and all theta
    since. By induction, with m the mean of n values, (1 - 1/(n+1)) m + theta/(n+1) is the mean of
    n + 1. Without it the starting value would keep the weight (1 - 1/H)^t, far more than any
    value after it. With ``share`` 1 the result is the mean over the whole task. All tensors move
    alike, no gradients are needed, and no step falls back.

    Args:
        share: share of the task's optimizer steps that theta* remembers, in (0, 1].
        max_steps: optimizer steps of the whole task. ``DynamicEMACallback`` takes Trainer's where
            this is None; a hand-written loop gives its own.

    Raises:
        ConfigError: a setting is out of range.

    Source: the usual warm-up of an exponential average; the horizon as a share is this project's.
    """

    terms = ()
    curvature_term = None

    share: float = 0.5
    max_steps: int | None = None
    fallback: float = field(default=0.01, init=False)  # never used: no step falls back

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share > 1:
            raise ConfigError(f"rule.share is {self.share!r}; expected a number in (0, 1].")

    def for_training(self, max_steps: int | None = None) -> "Horizon":
        """Return the rule with ``max_steps`` known, its own if it has one.

        Raises:
            ConfigError: neither it nor the caller knows how long training is.
        """
        if self.max_steps is not None:
            return self
        if max_steps is None:
            raise ConfigError(
                "rule.max_steps is not given; rule 'horizon' needs the number of optimizer steps, "
                'as in {"name": "horizon", "share": 0.5, "max_steps": 300}. DynamicEMACallback '
                "knows it from Trainer."
            )
        return replace(self, max_steps=max_steps)

    def gain(self, sums: Sums, *, step: int) -> Tensor:
        """Return 1 - beta for every tensor, shape (tensors,), in (0, 1]."""
        assert self.max_steps is not None  # DynamicEMA asked for_training()
        horizon = max(self.share * self.max_steps, 1)
        return torch.full_like(sums["drift_l1"], 1 / min(step + 1, horizon))


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
