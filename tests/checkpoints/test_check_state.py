"""`check_state` finds what is wrong with which leaf, and nothing where nothing is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optax_lamblion import (
    StateOptions,
    adamw8bit,
    check_state,
    lamb8bit,
    lion8bit,
    lion32bit,
    paged_lion8bit,
    state_sharding,
)
from tests.variants import every

P = {"w": jnp.ones((64, 256)), "b": jnp.ones(5)}
ALL = adamw8bit(amsgrad=True, percentile_clipping=5, options=StateOptions(count_skipped=True))


def faults(tx, state, params=P):
    return {path: what for path, what in check_state(tx, params, state).faults}


@every()
def test_a_state_of_init_and_of_a_step_is_sound(v):
    tx = optax.chain(optax.clip_by_global_norm(1.0), v(percentile_clipping=5))
    state = tx.init(P)
    assert check_state(tx, P, state).ok
    _, state = tx.update(P, state, P)
    assert check_state(tx, P, state).ok


def changed(tx, **fields):
    return faults(tx, tx.init(P)._replace(**fields))


WRONG = {
    "dtype": (lion8bit(), dict(mu=jax.tree.map(jnp.float16, P)), "mu/b", "float16"),
    "cast codes": (lion8bit(), dict(mu=P), "mu/w", "codes that were cast"),
    "scales": (lion8bit(), dict(mu_absmax={"w": jnp.full((64, 1), jnp.nan), "b": jnp.zeros(1)}),
               "mu/w", "scales that are NaN"),
    "moments": (lion32bit(), dict(mu={"w": P["w"], "b": P["b"] * jnp.inf}), "mu/b", "infinite"),
    "negative": (ALL, dict(nu={"w": jnp.zeros((64, 256), jnp.uint8), "b": -P["b"]}), "nu/b",
                 "negative"),
    "count": (lion32bit(), dict(count=-3), "count", "-3"),
    "counts": (ALL, dict(skipped=jnp.zeros(2, jnp.int32)), "skipped", "(2,)"),
    "no count": (ALL, dict(skipped=None), "skipped", "missing"),
    "norms": (ALL, dict(gnorm_history=jax.tree.map(lambda _: jnp.full(100, -1.0), P)),
              "gnorm_history/b", "negative"),
    "fewer norms": (ALL, dict(gnorm_history=jax.tree.map(lambda _: jnp.zeros(9), P)),
                    "gnorm_history/w", "(9,)"),
    "layout": (lion8bit(), dict(layout={"linear_256_v2": 0}), "layout", "linear"),
    "value of the layout": (lion8bit(), dict(layout={"power_256_v2": 7}), "layout", "none of"),
    "structure": (lion32bit(), dict(mu={"w": P["w"]}), "state", "structure"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name):
    tx, fields, path, what = WRONG[name]
    assert what in changed(tx, **fields)[path]


def test_all_that_is_wrong_is_found_at_once():
    assert set(changed(ALL, count=-1, mu=jax.tree.map(jnp.int8, P))) == {"count", "mu/w", "mu/b"}


def test_a_state_of_another_optimizer():
    assert "LambState" in faults(lion8bit(), lamb8bit().init(P))[""]
    chain = optax.chain(optax.scale_by_adam(), lion8bit())
    assert "0/nu/w" in faults(chain, lion8bit().init(P))
    other = optax.chain(optax.scale_by_adam(), lion8bit()).init({"w": P["w"][0], "b": P["b"]})
    found = faults(chain, other)
    assert {"0/mu/w", "0/nu/w", "1/mu/w"} <= set(found) and "0/mu/b" not in found


def test_the_kind_of_memory():
    tx = paged_lion8bit(options=StateOptions(page_min_size=1))
    state = lion8bit().init(P)
    assert "pinned_host" in faults(tx, state)["mu/w"]
    assert "pinned_host" in faults(lion8bit(), tx.init(P))["mu/w"]


def test_shards():
    mesh = jax.make_mesh((8,), ("fsdp",))
    params = jax.device_put({"w": P["w"]}, NamedSharding(mesh, PartitionSpec("fsdp")))
    tx = lion8bit()
    state = jax.device_put(tx.init({"w": P["w"]}), NamedSharding(mesh, PartitionSpec()))
    assert set(faults(tx, state, params)) == {"mu/w", "mu_absmax/w"}
    state = jax.device_put(state, state_sharding(tx, params))
    assert check_state(tx, params, state).ok


def test_it_prints():
    check = check_state(lion32bit(), P, lion32bit().init(P)._replace(count=np.float32(1)))
    assert str(check).startswith("count  State leaf 'count' has shape ()")
    assert "<td>count</td>" in check._repr_html_()
    assert "nothing wrong" in check_state(lion32bit(), P, lion32bit().init(P))._repr_html_()


def test_a_traced_state_is_refused():
    tx = lion32bit()
    with pytest.raises(TypeError, match="outside of `jax.jit`"):
        jax.jit(lambda state: check_state(tx, P, state).ok)(tx.init(P))
