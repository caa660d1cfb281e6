"""What `optax-lamblion memory` estimates of a step on a GPU, against programs compiled for one."""

import math

import pytest

from optax_lamblion.cli import _footprint
from optax_lamblion.demo.optimizers import OPTIMIZERS
from tests.deviceless import cases
from tests.deviceless.daily import each

pytestmark = pytest.mark.deviceless

DTYPES = {"bf16": "bfloat16", "f32": "float32"}
SIZE = math.prod(cases.SHAPE)
# Partial sums of norms, up to 8 bytes for every 256 elements, and what XLA takes for scalars.
SMALL = SIZE // 32 + 2**15
STEPS = {name: "apply_fused" for name in cases.OURS}
STEPS |= {f"optax.{name}": "update" for name in cases.OPTAX}
# With one leaf alone, XLA does without the second array that it has for many.
SPARED = {("lamb32bit", "f32"): 4 * SIZE}


@each(["{name}/{dtype}/{form}"], {"name, form": STEPS.items(), "dtype": DTYPES})
def test_a_compiled_step_needs_what_memory_estimates(facts_for, name, form, dtype):
    setting = _footprint.Setting(
        {"w": cases.SHAPE}, dtype=DTYPES[dtype], grad_dtype=DTYPES[dtype], platform="gpu"
    )
    row = OPTIMIZERS[name]
    found = _footprint.footprint(row, setting, _footprint.state(row, setting))
    temporary = facts_for("h200")[f"{name}/{dtype}/{form}"]["facts"]["temp"]
    assert temporary == pytest.approx(found.step_bytes - SPARED.get((name, dtype), 0), abs=SMALL)
