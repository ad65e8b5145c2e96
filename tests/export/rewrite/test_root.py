"""Square-root iterations against float64 eigh."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poan_export.rewrite.root import QUINTIC_STEPS, Scheme, quintic_step
from poan_train.networks.covariance import EighPower


def spd(condition: float, channels: int = 16, seed: int = 0) -> torch.Tensor:
    """One (1, C, C) float64 matrix with log-spaced eigenvalues from 1 to 1 / condition."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(channels, channels, generator=generator).double())
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), channels).double()
    return ((q * values) @ q.mT)[None]


def error(scheme: Scheme, a: torch.Tensor, dtype: torch.dtype) -> float:
    exact = EighPower(0.5)(a)
    return float((scheme.module()(a.to(dtype)) - exact).norm() / exact.norm())


# (condition, scheme, steps, tolerance): a step or two more than convergence needs in theory;
# float32 rounding is then about 1e-7 times the square root of the condition number.
@pytest.mark.parametrize(
    ("condition", "name", "steps", "tolerance"),
    [
        (1e2, "newton-schulz", 12, 1e-5),
        (1e4, "newton-schulz", 20, 1e-4),
        (1e6, "newton-schulz", 25, 1e-3),
        (1e2, "quintic", 8, 1e-5),
        (1e4, "quintic", 8, 1e-4),
        (1e6, "quintic", 8, 1e-3),
    ],
)
def test_both_iterations_reach_the_root_in_float32(
    condition: float, name: str, steps: int, tolerance: float
) -> None:
    scheme = Scheme(name=name, iterations=steps)  # type: ignore[arg-type]
    assert error(scheme, spd(condition), torch.float32) < tolerance


def test_five_newton_schulz_steps_do_not_reach_the_root() -> None:
    assert error(Scheme(name="newton-schulz", iterations=5), spd(1e4), torch.float64) > 0.05


def test_in_float64_one_more_quintic_step_gains_digits() -> None:
    a = spd(1e6)
    seven = error(Scheme(name="quintic", iterations=7), a, torch.float64)
    nine = error(Scheme(name="quintic", iterations=9), a, torch.float64)
    assert seven < 1e-3
    assert nine < 1e-9


@pytest.mark.parametrize("name", ["newton-schulz", "quintic"])
def test_a_matrix_with_one_large_eigenvalue_does_not_blow_the_iteration_up(name: str) -> None:
    # Its largest normalised eigenvalue is 1 up to rounding: the table's steps have slope 13 there.
    values = torch.full((32,), 1e-6)
    values[0] = 1.0
    q, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))
    a = ((q * values) @ q.mT)[None].double()
    scheme = Scheme(name=name, iterations=25 if name == "newton-schulz" else 9)  # type: ignore[arg-type]
    assert error(scheme, a, torch.float32) < 1e-3


def test_every_quintic_step_maps_the_unit_interval_into_itself() -> None:
    x = torch.linspace(0, 1, 20001).double()
    for step in range(len(QUINTIC_STEPS)):
        a, b, c = quintic_step(step)
        y = a * x + b * x**3 + c * x**5
        assert float(y.max()) <= 1.0 + 2e-4  # four printed digits
        assert float(y[1:].min()) > 0


def test_seven_quintic_steps_leave_no_constant_error() -> None:
    # A last step whose numbers sum to 0.9999 leaves 1e-4 of every eigenvalue's root.
    assert error(Scheme(name="quintic", iterations=7), spd(1e2), torch.float64) < 2e-5
    assert sum(quintic_step(6)) == 1.0
    assert quintic_step(6) == quintic_step(11) == (15 / 8, -5 / 4, 3 / 8)


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([1e-10, 1e-4, 1.0, 1e6]), seed=st.integers(0, 1000))
def test_the_root_scales_with_the_square_root_of_the_matrix(scale: float, seed: int) -> None:
    a = spd(1e3, seed=seed).float()
    for name in ("newton-schulz", "quintic"):
        module = Scheme(name=name, iterations=12).module()  # type: ignore[arg-type]
        expected = module(a) * scale**0.5
        torch.testing.assert_close(module(a * scale), expected, rtol=1e-3, atol=1e-4 * scale**0.5)


def test_a_scheme_of_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 iterations, got 1"):
        Scheme(name="quintic", iterations=1)
