"""How numbers are written in tables."""

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def number(value: float | None, digits: int = 1) -> str:
    """Write a number; a missing one is a dash."""
    if value is None:
        return DASH
    # Rounding first: -0.04 is 0.0, not -0.0.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def size(count: int | None) -> str:
    """Write a number of bytes as ``12 B``, ``3.4 kB`` or ``1.2 MB``; a missing one is a dash."""
    return DASH if count is None else f"{_scaled(count, ('', 'k', 'M', 'G'))}B"


def duration(seconds: float) -> str:
    """Write seconds as ``1 h 02 min``, ``3 min 05 s`` or ``12 s``."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def measured(value: float | None, unit: str) -> str:
    """Write a value of a ``lcia.evaluation.Measure`` as its unit asks; a missing one is a dash."""
    if value is None:
        return DASH
    if unit == "seconds":
        return duration(value)
    if unit == "count":
        if value >= 1000:
            return _scaled(value, ("", "k", "M", "G"))
        return number(value, 0 if value == round(value) else 1)
    return number(value, 1 if unit else 3)


def _scaled(value: float, prefixes: tuple[str, ...]) -> str:
    """Return ``1.2 M`` or ``12 ``, ready for a unit."""
    for prefix in prefixes:
        if value < 1000 or prefix == prefixes[-1]:
            break
        value /= 1000
    return f"{value:.1f} {prefix}" if prefix else f"{value:.0f} "
