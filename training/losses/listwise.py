"""Plackett-Luce DPO over rankings, Rafailov et al., arXiv 2305.18290, appendix A.3.

    loss = -sum over k < K of [u_k - logsumexp over j >= k of u_j],    u = beta r(y), best first

Each stage is -log sigmoid(u_k - logsumexp over j > k of u_j), which is how it is computed; K = 2 is dpo.

Ties. Equal grades say that the order among these completions is not known. A group of them is one stage: minus the log
of the probability that all of the group come before everything worse, whatever their order among each other. That is
the sum of the equation's likelihood over all orders of the group, Kalbfleisch and Prentice's marginal likelihood
(Biometrika 60, 1973), here as the integral of DeLong, Guirguis and So (Biometrika 81, 1994), "exact" in SAS PHREG:

    P(group first) = integral over t > 0 of e^-t prod over i in group of (1 - exp(-t w_i / W)) dt

with w = e^u and W the sum of w over everything worse. A group with nothing worse has P = 1: no loss, no gradient.
"""

import math
from typing import TYPE_CHECKING, Literal

from training.losses.base import LossSettings, Positive, RankedLogps
from training.losses.stable import log1mexp

if TYPE_CHECKING:
    from torch import Tensor

# The trapezoidal rule over s = log t, whose error falls as exp(-pi^2 / STEP) since the integrand is analytic for
# |Im s| < pi / 2; outside of the range lies a share of e^-37. Measured: 1e-11 with 16 tied completions, 1e-6 with 64.
STEP, LOWEST, NODES = 0.25, -37.0, 177


class Listwise(LossSettings):
    """Plackett-Luce DPO (arXiv 2305.18290, appendix A.3): the likelihood of the whole ranking; K = 2 is dpo exactly."""

    view = "rankings"
    needs_reference = True

    name: Literal["listwise"] = "listwise"
    beta: Positive = 0.1

    def __call__(self, policy: RankedLogps, reference: RankedLogps) -> "Tensor":
        """Per-ranking loss in nats, shape (batch,); 0 where all grades are equal."""
        from torch import where
        from torch.nn.functional import logsigmoid

        r, grade = policy.completions.total - reference.completions.total, policy.grade
        present = grade > -math.inf
        worse = present[:, None, :] & (grade[:, None, :] < grade[:, :, None])  # (batch, i, j): j is worse than i
        tied = present[:, None, :] & (grade[:, None, :] == grade[:, :, None])  # i itself included
        stages = worse.any(-1)
        # Differences first, as in dpo, so that the two agree to the last bit. Where no stage is, zeros stand in: the
        # logsumexp of nothing is -inf, and its gradient is for no version of torch to decide.
        behind = where(worse, self.beta * (r[:, None, :] - r[:, :, None]), -math.inf)
        lead = -where(stages[:, :, None], behind, 0.0).logsumexp(-1)  # u_i - log W
        log_probability = where(tied.sum(-1) > 1, _all_first(lead, tied), logsigmoid(lead))
        spokesman = ~tied.tril(-1).any(-1)  # the first of its group counts for the group
        return where(stages & spokesman, -log_probability, 0.0).sum(-1)


def _all_first(lead: "Tensor", tied: "Tensor") -> "Tensor":
    """log P(group first) for the group of every place: ``lead`` (batch, K) is log(w / W), ``tied`` (batch, K, K) bool."""
    from torch import arange, where

    s = LOWEST + STEP * arange(NODES, dtype=lead.dtype, device=lead.device)
    v = lead[:, :, None] + s
    # log(1 - exp(-e^v)), which is v to the last digit below -40 and 0 above 6.
    arrived = where(v < -40, v, log1mexp(-v.clamp(-40, 6).exp()))
    group = where(tied[..., None], arrived[:, None], 0.0).sum(2)  # no matmul: it would lose digits under TF32
    return (group + s - s.exp()).logsumexp(-1) + math.log(STEP)
