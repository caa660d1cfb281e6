import pytest

from benchmarks.growth import figures, sweeps
from optax_lamblion.demo import contest


@pytest.mark.parametrize("power", [0, 1, 2])
def test_exponents_are_powers_of_large_points(power):
    xs = [1, 10, 100, 300, 1000, 2000]
    # What every call costs is all there is of the small ones.
    ys = [max(3.0 * x**power, 5.0 if x < 2000 / 40 else 0) for x in xs]
    assert figures.exponent(xs, ys) == pytest.approx(power)


def test_what_is_nothing_has_no_exponent():
    assert figures.exponent([100, 1000], [0, 0]) is None


def test_points_say_all_that_figures_need(monkeypatch):
    monkeypatch.setattr(contest, "FAMILIES", ("lion",))
    points = list(sweeps.leaves((2,), 2))
    assert [x["optimizer"] for x in points] == ["optax.lion", "lion8bit", "copy"]
    assert all(x["x"] == 2 and x["parameters"] == 64 + 128 for x in points)
    for cost in figures.COSTS.values():
        assert all(cost(x) >= 0 for x in points)


def test_the_largest_leaf_is_only_compiled_for(monkeypatch):
    monkeypatch.setattr(contest, "FAMILIES", ("lion",))
    theirs, ours = sweeps.largest(36)  # 256 GiB
    assert theirs["state_bytes_per_parameter"] == pytest.approx(4)
    assert ours["state_bytes_per_parameter"] == pytest.approx(1 + 4 / 256)
