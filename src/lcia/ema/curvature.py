"""A balance rule with inner products in place of L1 norms."""

from dataclasses import dataclass

from torch import Tensor

from lcia.ema.balance import Rule, Sums


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
