"""Logarithms that keep their digits, forward and backward."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def log1mexp(x: "Tensor") -> "Tensor":
    """log(1 - e^x) for x < 0, of any shape; two branches that meet at -ln 2.

    Maechler, "Accurately computing log(1 - exp(-|a|))", 2012. Near 0 e^x rounds to 1 and log1p(-e^x) to -inf; far below,
    1 - e^x rounds to 1. The far branch is given a harmless number near 0: its infinite gradient times 0 would be NaN.
    """
    from torch import where

    near = x > -math.log(2)
    return where(near, (-x.expm1()).log(), (-where(near, -1.0, x).exp()).log1p())
