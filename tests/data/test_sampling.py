import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvrkit.data.sampling import SAMPLERS, sample


@given(
    st.sampled_from(sorted(SAMPLERS)),
    st.integers(1, 300),
    st.integers(1, 60),
    st.integers(0, 2**32),
)
def test_samplings(sampling, available, count, seed):
    chosen = sample(sampling, available, count, np.random.default_rng(seed))
    assert len(chosen) == min(count, available)
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < available
    if count < available and sampling in ("uniform", "segment-random"):
        for segment, index in enumerate(chosen):  # one of each segment
            assert segment * available // count <= index < (segment + 1) * available / count
    if count < available and sampling in ("head", "tail"):
        assert chosen[0 if sampling == "head" else -1] == (
            0 if sampling == "head" else available - 1
        )


def test_sampling_errors():
    with pytest.raises(ValueError, match="sampling: expected one of head, random"):
        sample("middle", 10, 2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sample("uniform", 10, 0)
