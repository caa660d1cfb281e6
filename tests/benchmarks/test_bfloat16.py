import pytest

from benchmarks.bfloat16 import report, training
from benchmarks.bfloat16.runs import COMPENSATED, NEAREST, STOCHASTIC, WAYS

TRAINED = report.trained()
OPTIMIZERS = pytest.mark.parametrize("optimizer", TRAINED)


@OPTIMIZERS
def test_every_way_has_every_seed_at_both_rates(optimizer):
    runs = TRAINED[optimizer]
    most, least = runs.rates
    assert least == pytest.approx(most / 10)
    assert len(runs.seeds) == training.SEEDS
    assert len(runs.runs) == len(runs.seeds) * 2 * len(WAYS)
    for rate in runs.rates:
        for way in WAYS:
            assert [run["seed"] for run in runs.of(way, rate)] == runs.seeds


@OPTIMIZERS
def test_compensated_is_within_seed_noise_of_float32(optimizer):
    """The criterion: with no seed is it further from float32 than seeds are from each other.

    These are its distance from the float32 training of the same start and batches, and the standard
    deviation of float32's losses over the seeds.
    """
    runs = TRAINED[optimizer]
    for rate in runs.rates:
        assert abs(runs.excess(COMPENSATED, rate)).max() < runs.seed_noise(rate), rate


@OPTIMIZERS
def test_nearest_ends_above_it_and_by_far_at_a_tenth_of_the_rate(optimizer):
    runs = TRAINED[optimizer]
    full, tenth = runs.rates
    assert runs.excess(NEAREST, full).min() > 0
    assert runs.excess(NEAREST, tenth).min() > 10 * runs.seed_noise(tenth)


def test_what_the_page_says_of_stochastic_rounding():
    excess = {
        (name, rate): runs.excess(STOCHASTIC, rate) / runs.seed_noise(rate)
        for name, runs in TRAINED.items()
        for rate in runs.rates
    }
    assert sum((x > 0).sum() for x in excess.values()) > 9  # of eighteen
    assert [name for (name, _), x in excess.items() for one in x if abs(one) > 1] == ["adamw8bit"]
