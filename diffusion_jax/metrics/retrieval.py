"""How well one kind of thing finds another: recall at k, and classification by the nearest class.

With scores [N, M] of N queries and M answers, some of which are a query's own,

    R@k = the share of queries of which an own answer is among the k best                         (1)

(Radford et al. 2021, arXiv 2103.00020, table 13). By chance, with n own answers of M,

    R@k = 1 - (M - n choose k) / (M choose k)                                                     (2)
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RANKS = (1, 5, 10)


def recall(scores: np.ndarray, own: np.ndarray, ranks: Sequence[int] = RANKS) -> dict[str, float]:
    """(1) by name, 'R@1' for example.

    Args:
      scores: [N, M]; of equal ones an own answer counts as the worse.
      own: [N, M] bool, at least one True in each row.
      ranks: k; those above M are left out.
    """
    best = np.max(np.where(own, scores, -np.inf), axis=1, keepdims=True)
    ahead = np.sum((scores >= best) & ~own, axis=1)
    return {f"R@{k}": float(np.mean(ahead < k)) for k in ranks if k <= scores.shape[1]}


def chance(own: np.ndarray, ranks: Sequence[int] = RANKS) -> dict[str, float]:
    """(2), averaged over the queries."""
    count, mine = own.shape[1], own.sum(1)
    found = {}
    for k in ranks:
        if k <= count:
            missed = np.prod([np.maximum(count - mine - i, 0) / (count - i) for i in range(k)], axis=0)
            found[f"R@{k}"] = float(np.mean(1 - missed))
    return found
