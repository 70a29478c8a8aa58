"""Numbers as people read them: enough digits, and no more."""

import math


def number(value: float) -> str:
    """Four significant digits, thousands set apart, no exponent between 0.0001 and a million."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        rounded = abs(float(f"{value:.4g}"))
        digits = 3 - (math.floor(math.log10(rounded)) if value else 0)
        return f"{value:,.{min(max(digits, 0), 7)}f}" if value != int(value) else f"{int(value):,}"
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def short(value: float) -> str:
    """For an axis: as few digits as tell its ticks apart."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:.6g}" if size >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def change(before: float, after: float) -> str:
    """A difference with its sign, and in per cent where that says something."""
    moved = after - before
    if not math.isfinite(moved):
        return ""
    sign = "+" if moved >= 0 else "\N{MINUS SIGN}"
    told = f"{sign}{number(abs(moved))}"
    if before > 0 and abs(moved) / before < 10:
        told += f" ({sign}{percent(abs(moved) / before)})"
    return told


def interval(ends: tuple[float, float]) -> str:
    """`[0.052, 0.103]`, in three digits: nobody knows more of an interval."""
    return f"[{', '.join(f'{end:.3g}' for end in ends)}]"


def percent(share: float) -> str:
    """A share of one."""
    if 0.99 < share < 1:
        return f"{share:.1%}" if share < 0.999 else f"{share:.2%}" if share < 0.9999 else "over 99.99%"
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}" if share >= 0.001 else "under 0.1%"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 20 s`, `5 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:,.1f} MiB"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
