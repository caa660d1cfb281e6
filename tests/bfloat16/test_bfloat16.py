import pytest

from tests.bfloat16 import report

RESULTS = report.read()
OPTIMIZERS = pytest.mark.parametrize("optimizer", RESULTS)


def test_the_page_shows_what_was_trained():
    assert report.on_the_page() == report.markdown(RESULTS)


@OPTIMIZERS
def test_every_way_has_every_seed_at_both_rates(optimizer):
    trainings = report.Trainings(RESULTS[optimizer])
    most, least = trainings.rates
    assert least == pytest.approx(most / 10)
    assert len(trainings.seeds) == 3
    assert len(trainings.runs) == len(trainings.seeds) * 2 * len(report.WAYS)
    for rate in trainings.rates:
        for way in report.WAYS:
            assert [run["seed"] for run in trainings.of(way, rate)] == trainings.seeds


@OPTIMIZERS
def test_compensated_is_within_seed_noise_of_float32(optimizer):
    """The criterion: with no seed is it further from float32 than seeds are from each other.

    These are its distance from the float32 training of the same start and batches, and the standard
    deviation of float32's losses over the seeds.
    """
    trainings = report.Trainings(RESULTS[optimizer])
    for rate in trainings.rates:
        excess = trainings.excess(report.COMPENSATED, rate)
        assert abs(excess).max() < trainings.seed_noise(rate), rate


@OPTIMIZERS
def test_nearest_is_not_at_a_tenth_of_the_rate(optimizer):
    trainings = report.Trainings(RESULTS[optimizer])
    rate = trainings.rates[-1]
    assert trainings.excess(report.NEAREST, rate).min() > trainings.seed_noise(rate)
