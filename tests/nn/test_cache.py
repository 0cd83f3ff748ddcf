"""The key/value cache: rows go behind rows, and never around."""

import pytest
import torch

from flashlla.nn import KVCache


@pytest.fixture
def rows(generator):
    return torch.randn(2, 5, 3, 4, generator=generator), torch.randn(2, 5, 3, 6, generator=generator)


def test_append_writes_behind_the_used_rows(rows):
    k, v = rows
    cache = KVCache(2, 5, 3, 4, 6)
    cache.append(k[:, :2], v[:, :2])
    cache.append(k[:, 2:], v[:, 2:])
    assert torch.equal(cache.k, k) and torch.equal(cache.v, v)
    assert cache.lengths.tolist() == [5, 5]


def test_append_follows_the_length_of_each_row(rows):
    k, v = rows
    cache = KVCache(2, 8, 3, 4, 6)
    cache.append(k, v)
    cache.truncate(torch.tensor([1, 4]))
    cache.append(k[:, :2], v[:, :2])
    assert torch.equal(cache.k[0, 1:3], k[0, :2]) and torch.equal(cache.k[1, 4:6], k[1, :2])
    assert torch.equal(cache.k[1, :4], k[1, :4])
    assert cache.lengths.tolist() == [3, 6] and cache.longest == 6


def test_overflow_is_an_error_and_writes_nothing(rows):
    k, v = rows
    cache = KVCache(2, 6, 3, 4, 6)
    cache.append(k, v)
    before = cache.k.clone()
    for overflow in (lambda: cache.append(k[:, :2], v[:, :2]), lambda: cache.advance(2)):
        with pytest.raises(ValueError, match="cache overflow: 5 rows plus 2 new exceed capacity=6"):
            overflow()
    assert torch.equal(cache.k[:, :5], before[:, :5]) and cache.lengths.tolist() == [5, 5]
    cache.reset()
    cache.append(k, v)
    assert cache.lengths.tolist() == [5, 5]


def test_wrong_arguments(rows):
    k, v = rows
    with pytest.raises(ValueError, match="capacity=0 must be at least 1"):
        KVCache(2, 0, 3, 4)
    with pytest.raises(TypeError, match="batch must be an int"):
        KVCache(2.0, 1, 3, 4)
    cache = KVCache(2, 8, 3, 4, 6)
    with pytest.raises(ValueError, match=r"v has shape \(2, 4, 3, 6\); this cache takes \(2, 5, 3, 6\)"):
        cache.append(k, v[:, :4])
    with pytest.raises(ValueError, match="k has shape"):
        cache.append(k[0], v[0])
    with pytest.raises(TypeError, match=r"k has dtype torch.float64 and the cache has torch.float32"):
        cache.append(k.double(), v)
    with pytest.raises(ValueError, match="rows=-1"):
        cache.advance(-1)
    with pytest.raises(ValueError, match="lengths has shape"):
        cache.truncate(torch.tensor([1]))
