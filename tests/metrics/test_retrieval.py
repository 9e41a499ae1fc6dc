"""Recall at k against counting by hand, and chance against many draws."""
import numpy as np

from diffusion_jax.metrics.retrieval import chance, recall


def test_recall_counts_who_is_ahead():
    scores = np.array([[3.0, 2, 1], [1, 2, 3], [2, 2, 2]])
    assert recall(scores, np.eye(3, dtype=bool), (1, 2, 3, 4)) == {"R@1": 1 / 3, "R@2": 2 / 3, "R@3": 1.0}


def test_any_own_answer_counts():
    own = np.array([[True, False, True, False]])
    assert recall(np.array([[0.0, 2, 3, 1]]), own, (1,)) == {"R@1": 1.0}
    assert recall(np.array([[0.0, 3, 2, 1]]), own, (1, 2)) == {"R@1": 0.0, "R@2": 1.0}


def test_chance_is_what_random_scores_give():
    rng = np.random.RandomState(0)
    own = rng.rand(40, 30) < 0.08
    own[:, 0] |= ~own.any(1)
    found = np.mean([[recall(rng.rand(40, 30), own)[f"R@{k}"] for k in (1, 5, 10)] for _ in range(300)], axis=0)
    np.testing.assert_allclose(found, list(chance(own).values()), atol=0.02)
