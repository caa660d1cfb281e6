"""Compiled steps take what `benchmarks/results/guard.json` says, and make the codes that it knows.

Where a change is meant to change them, `python -m benchmarks.guard --write` does so in its diff.
"""

import importlib.metadata

import pytest

from benchmarks import guard, records


@pytest.fixture(scope="module")
def record():
    return records.load(guard.NAME)


def test_the_record_has_all_cases_and_no_other(record):
    assert list(record["results"]["footprints"]) == [guard.case_name(case) for case in guard.CASES]


@pytest.mark.parametrize("case", guard.CASES, ids=guard.case_name)
def test_a_compiled_step_takes_what_the_record_says(case, record):
    recorded = record["versions"]["jaxlib"]
    if importlib.metadata.version("jaxlib") != recorded:
        pytest.skip(f"what XLA compiles is recorded of jaxlib {recorded}")
    assert guard.footprint(*case) == record["results"]["footprints"][guard.case_name(case)]


@pytest.mark.parametrize("name", guard.DIGESTED)
def test_fixed_gradients_lead_to_the_recorded_codes(name, record):
    # Where a processor multiplies and adds in one operation, a moment can differ in its last bit.
    processor = record["machine"].rpartition(",")[0]
    if records.machine().rpartition(",")[0] != processor:
        pytest.skip(f"codes are recorded of an {processor}")
    assert guard.digest(name) == record["results"]["digests"][name]
