"""The duration of a request is estimated from measurements, and limits its size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.serving.speed import SAFETY, Speed, find_max_pixels


@given(st.floats(0, 1e-5), st.floats(0, 1e-12), st.integers(1000, 10**6))
def test_a_fitted_speed_agrees_with_its_measurements(linear, quadratic, pixels):
    true = Speed(linear, quadratic)
    fitted = Speed.fit(pixels, true.seconds(pixels), 4 * pixels, true.seconds(4 * pixels))
    for count in (pixels, 2 * pixels, 10 * pixels):
        assert fitted.seconds(count) == pytest.approx(true.seconds(count), rel=1e-3, abs=1e-9)


@given(st.floats(1e-9, 1e-4), st.floats(0.1, 100.0))
def test_the_largest_image_fits_into_the_timeout_and_a_larger_one_does_not(rate, timeout_s):
    limit = 2**25
    pixels = find_max_pixels(lambda side: rate * side**2, timeout_s, limit)
    assert pixels == limit or pixels * rate * SAFETY <= timeout_s < (pixels**0.5 + 64) ** 2 * rate * SAFETY + 1e-9
