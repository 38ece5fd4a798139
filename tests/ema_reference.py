"""Every rule in float64 numpy, written from the formulas; never imports the package."""

import numpy as np

FALLBACK = {"paper": 0.01, "release": 0.01, "next": 0.001, "curvature": 0.01}


def l1(x):
    return float(np.abs(x).sum())


def closed_form(rule, *, d, g, y, s):
    """1 - beta for flat float64 arrays: drift, gradient, its change, the step."""
    if rule == "paper":
        return 1 - (1 + l1(g)) * l1(s) / (l1(d) * l1(y))
    if rule in ("release", "next"):
        return {"release": 2.0, "next": 0.01}[rule] * (1 + l1(g)) / (l1(d) * l1(y))
    kappa = max(float(y @ s), 0.0) / float(s @ s)
    return 1 - (float(g @ d) + np.sqrt(d @ d)) / (kappa * float(d @ d))


def trajectory(rule, start, steps):
    """Averages after each step; ``steps`` is a list of (theta, grad) of one tensor."""
    average, theta_prev, grad_prev = start.astype(np.float64).ravel(), start.ravel(), None
    out = []
    for theta, grad in steps:
        theta, grad = theta.astype(np.float64).ravel(), grad.astype(np.float64).ravel()
        gain = FALLBACK[rule]
        if grad_prev is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                closed = closed_form(
                    rule, d=theta - average, g=grad, y=grad - grad_prev, s=theta - theta_prev
                )
            gain = closed if 0 < closed < 1 else gain
        average = average + gain * (theta - average)
        theta_prev, grad_prev = theta, grad
        out.append(average)
    return out
