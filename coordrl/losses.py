"""The loss of A2C and its gradients at the network's outputs, as a pure function.

Mnih et al. 2016 (arXiv 1602.01783), section 4 and algorithm S3; the weights and signs are SB3's:
loss = policy_loss + ent_coef * entropy_loss + vf_coef * value_loss.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class A2CLoss(NamedTuple):
    """The three parts of the loss, each a mean over the batch, and the gradients of the whole loss."""

    policy: Tensor  # (), of -advantage * log pi(action)
    value: Tensor  # (), of the squared error
    entropy: Tensor  # (), of -entropy
    logits: Tensor  # (batch, actions), d loss / d logits
    values: Tensor  # (batch,), d loss / d values


def a2c_loss(
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
    advantages: Tensor,
    returns: Tensor,
    *,
    ent_coef: float,
    vf_coef: float,
) -> A2CLoss:
    """Compute the loss of a batch, and its gradients in closed form.

    Args:
        logits: (batch, actions), unnormalised log-probabilities.
        values: (batch,), the network's.
        actions: (batch,) int64, those taken.
        advantages: (batch,), constants.
        returns: (batch,), what the values should be; constants.
        ent_coef: weight of the entropy.
        vf_coef: weight of the squared error.
    """
    share = 1.0 / len(values)
    log_probs = logits.log_softmax(dim=1)
    probs = log_probs.exp()
    chosen = log_probs.gather(1, actions[:, None])[:, 0]
    entropies = -(probs * log_probs).sum(dim=1)
    errors = values - returns
    # d(-A log p_a)/dz = A (p - onehot_a); dH/dz = -p (log p + H)
    d_logits = probs * (advantages[:, None] + ent_coef * (log_probs + entropies[:, None]))
    d_logits.scatter_add_(1, actions[:, None], -advantages[:, None])
    return A2CLoss(
        policy=-(advantages * chosen).sum() * share,
        value=errors.square().sum() * share,
        entropy=-entropies.sum() * share,
        logits=d_logits * share,
        values=errors * (2.0 * vf_coef * share),
    )
