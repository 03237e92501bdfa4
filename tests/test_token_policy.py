"""Which tokens are sparse: by position, with padding and with a cache."""

import torch

from larosa.config import TokenPolicyConfig
from larosa.sparsity.tokens import TokenPolicy


def policy(kind: str, n: int = 0, fraction: float = 1.0) -> TokenPolicy:
    return TokenPolicy(TokenPolicyConfig(kind=kind, n=n, fraction=fraction))


LEFT_PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def test_skip_first_n_counts_real_tokens() -> None:
    got = policy("skip_first_n", n=2).sparse_tokens(2, 6, 0, LEFT_PADDED)
    assert got.int().tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]]


def test_skip_first_n_goes_on_behind_the_cache() -> None:
    assert policy("skip_first_n", n=5).sparse_tokens(1, 3, 4, None).tolist() == [[False, True, True]]


def test_last_fraction_of_the_prompt_then_all() -> None:
    half = policy("last_fraction", fraction=0.5)
    assert half.sparse_tokens(2, 6, 0, LEFT_PADDED).int().tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert half.sparse_tokens(1, 1, 6, None).tolist() == [[True]]


def test_decode_only() -> None:
    assert not policy("decode_only").sparse_tokens(1, 4, 0, None).any()
    assert policy("decode_only").sparse_tokens(1, 1, 4, None).all()
