"""What distinguishes domains: how much they tell, how long they take, and how alike their texts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .episodes import Episodes


def richness(texts: Sequence[str]) -> float:
    """State information richness: the mean number of characters of states."""
    return float(np.mean([len(text) for text in texts]))


def planning_complexity(episodes: Episodes, limit: int) -> float:
    """The mean number of steps, where a failure counts as ``limit``, however it came."""
    return float(np.where(episodes.success, episodes.steps, limit).mean())


def similarities(texts: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
    """Cosine similarity of the mean TF-IDF vectors of domains, for all pairs of two.

    Terms are words and numbers, and document frequencies are those of all texts together.

    Args:
        texts: prompts, by domain.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    vectorizer = TfidfVectorizer(token_pattern=r"\w+").fit([text for part in texts.values() for text in part])
    means = [np.asarray(vectorizer.transform(part).mean(0))[0] for part in texts.values()]
    found = cosine_similarity(np.stack(means))
    names = list(texts)
    return {(a, b): float(found[i, j]) for i, a in enumerate(names) for j, b in enumerate(names) if i != j}
