"""A run resumes from a checkpoint as if it had not stopped, bit for bit."""

import flax.serialization
import jax
import orbax.checkpoint
import pytest

from optax_lamblion import StateOptions
from tests.optimizers import problem
from tests.variants import every

EXTRAS = {
    "defaults": {},
    "everything": dict(
        percentile_clipping=5, options=StateOptions(keep_32bit=lambda path: path == "odd_tail")
    ),
}


def orbax_round_trip(tree, like, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "checkpoint", jax.eval_shape(lambda: like))


def flax_round_trip(tree, like, folder):
    (folder / "state").write_bytes(flax.serialization.to_bytes(tree))
    restored = flax.serialization.from_bytes(like, (folder / "state").read_bytes())
    return jax.tree.map(jax.numpy.asarray, restored)


@pytest.mark.parametrize("round_trip", [orbax_round_trip, flax_round_trip], ids=["orbax", "flax"])
@pytest.mark.parametrize("extra", EXTRAS)
@every()
def test_training_resumes_bit_for_bit(v, extra, round_trip, tmp_path):
    third_slot = dict(amsgrad=True) if "nu" in v.slots and extra == "everything" else {}
    tx = v(**EXTRAS[extra], **third_slot)
    p, state, _ = problem.run(tx, 2)
    # A new process knows the parameters' shapes and how to make a fresh state.
    fresh = (problem.params(), tx.init(problem.params()))
    restored = round_trip((p, state), fresh, tmp_path)
    problem.assert_equal(restored, (p, state))
    problem.assert_equal(
        problem.run(tx, 1, start=restored, first=3), problem.run(tx, 1, start=(p, state), first=3)
    )


@every()
def test_a_restored_state_without_types_is_refused_by_name(v, tmp_path):
    """Orbax without a target gives dicts; the message says what `update` needs."""
    tx = v()
    p = problem.params(only=("small",))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", tx.init(p))
        checkpointer.wait_until_finished()
        untyped = checkpointer.restore(tmp_path / "checkpoint")
    with pytest.raises(TypeError, match=rf"`{v.state_type.__name__}` that `tx.init.*got dict"):
        tx.update(p, untyped, p)
