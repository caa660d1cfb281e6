"""Figures say what a record says, here of one in which every optimizer has a ratio of its own."""

import pytest

from benchmarks import records
from benchmarks.steps import figures, suite, torch_peers, wide
from optax_lamblion.demo import contest, timing


def entry(optimizer, way, family, ratio):
    return {
        "optimizer": optimizer,
        "way": way,
        "baseline": f"optax.{family}",
        "median_ms": 10 * ratio,
        "ratio": ratio,
        "ratio_quartiles": [0.9 * ratio, 1.1 * ratio],
        "of_copy": 4 * ratio,
        "times_ms": [10 * ratio, 20 * ratio],
        "state_bytes_per_parameter": 1.0,
        "temporary_bytes": 200,
        "trace_seconds": 0.5,
        "compile_seconds": 1.5,
    }


def contests():
    for row in suite.SUITE:
        for family in row.families:
            entries = [entry(f"optax.{family}", "update", family, 1.0)]
            for bits in row.bits:
                for way in row.ways:
                    ratio = 0.5 if (bits, way) == (8, "apply_fused") else 0.75
                    entries.append(entry(f"{family}{bits}bit", way, family, ratio))
            entries.append(entry(contest.COPY, contest.COPY, family, 0.25))
            if row.everything:
                entries.append(entry(f"optax.{family}", wide.WAY, family, 0.8))
                entries.append(entry(f"{family}8bit", wide.WAY, family, 0.4))
            if row.everything and row.dtype == "float32":  # and in bfloat16 these cannot step
                names = torch_peers.OF_FAMILY[family]
                entries += [entry(x, torch_peers.WAY, family, 5.0) for x in names]
            yield {
                "workload": row.workload,
                "dtype": row.dtype,
                "family": family,
                "leaves": 2,
                "parameters": 100,
                "entries": entries,
                "absent": {},
            }


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(figures, "_PLOT", tmp_path / "plot.png")
    record = records.new(command="python -m x", results={"contests": list(contests())})
    records.save(figures.RECORD, record)
    return record


def rows(table):
    cells = (line.strip("| ").split(" | ") for line in table.splitlines())
    return {line[0]: line[1:] for line in cells}


def test_a_ratio_in_a_word():
    assert figures.FIGURES["steps-cpu.adamw8bit"]() == "0.50"


def test_ours_on_one_leaf():
    found = rows(figures.leaf())
    fused, update = found["`lion8bit`, `apply_fused`"], found["`lion8bit`, `update`"]
    assert fused[:3] == ["0.50 (0.45–0.55)", "0.50 (0.45–0.55)", "2.00"]
    assert update[0] == "0.75 (0.68–0.83)"
    assert fused[-1] == "2.00 (2)"
    assert len(found) == 2 + 3 * 2 * len(timing.WAYS)


def test_others_are_compared_with_our_step_turn_by_turn():
    found = rows(figures.peers())
    assert found["bitsandbytes Lion8bit"] == ["1.00", "50.0", "10.0 (10.0–10.0)", "cannot"]
    assert found["optax.lion"][1:3] == ["10.0", "2.00 (2.00–2.00)"]
    assert found["**`lion8bit`**"][2] == "1.00 (1.00–1.00)"
    assert "lion32bit" not in figures.peers()


def test_wide_vectors_are_compared_with_both_of_optax():
    ours = rows(figures.in_wide_vectors())["`lion8bit`"]
    assert ours[:3] == ["0.80 (0.80–0.80)", "0.40 (0.40–0.40)", "0.50 (0.50–0.50)"]


def test_every_machine_of_which_there_is_a_record_has_a_row(record):
    records.save("steps-cpu-other", record | {"machine": "another one"})
    found = rows(figures.machines())
    assert found["another one"][1] == found[record["machine"]][1] == "0.50 (0.45–0.55)"


def test_every_list_of_the_suite_has_a_row():
    assert len(rows(figures.lists())) == 2 + len({row.workload for row in suite.SUITE})
    assert rows(figures.compiling())["lora-r8"][1] == "0.5 + 1.5"


def test_the_plot_is_of_the_record(record):
    figures.draw()
    assert figures.picture().startswith("![Time of a step")
    records.save(figures.RECORD, record | {"date": "2000-01-01"})
    with pytest.raises(ValueError, match="was not drawn from the record"):
        figures.picture()
