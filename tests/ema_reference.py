"""Every rule in float64 numpy, written from the formulas; never imports the package."""

import numpy as np

FALLBACK = {"paper": 0.01, "release": 0.01, "toolkit": 0.001, "curvature": 0.01}


def l1(x):
    return float(np.abs(x).sum())


def closed_form(rule, *, d, g, y, s):
    """1 - beta for flat float64 arrays: drift, gradient, its change, the step."""
    if rule == "paper":
        return 1 - (1 + l1(g)) * l1(s) / (l1(d) * l1(y))
    if rule in ("release", "toolkit"):
        return {"release": 2.0, "toolkit": 0.01}[rule] * (1 + l1(g)) / (l1(d) * l1(y))
    kappa = max(float(y @ s), 0.0) / float(s @ s)
    return 1 - (float(g @ d) + np.sqrt(d @ d)) / (kappa * float(d @ d))


def trajectory(rule, start, steps):
    """Averages after each step; ``steps`` is a list of (theta, grad) of one tensor.

    grad_t is the gradient at theta_{t-1}: between grad_{t-1} and grad_t lies the step from
    theta_{t-2} to theta_{t-1}.
    """
    flat = [tuple(a.astype(np.float64).ravel() for a in step) for step in steps]
    thetas, grads = [start.astype(np.float64).ravel(), *(t for t, _ in flat)], [g for _, g in flat]
    average, out = thetas[0], []
    for t in range(1, len(thetas)):
        theta, gain = thetas[t], FALLBACK[rule]
        if t > 1:
            grad, grad_prev = grads[t - 1], grads[t - 2]
            step = thetas[t - 1] - thetas[t - 2]
            with np.errstate(divide="ignore", invalid="ignore"):
                closed = closed_form(rule, d=theta - average, g=grad, y=grad - grad_prev, s=step)
            gain = closed if 0 < closed < 1 else gain
        average = average + gain * (theta - average)
        out.append(average)
    return out
