"""Mutants can be tried: what they change is where they say."""

import pytest

from tests.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mistake)
def test_what_a_mutant_changes_stands_in_its_file_once(mutant):
    assert (ROOT / mutant.path).read_text(encoding="utf-8").count(mutant.right) == 1
