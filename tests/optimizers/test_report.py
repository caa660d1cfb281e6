"""What a report of a state shows: on paper, in notebooks, per parameter and per device."""

import html.parser
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_lamblion import lamb8bit, lion8bit, paged_lion8bit, state_report, state_sharding
from optax_lamblion._state.report import MOST_ROWS


def tree_of(count, shape=(64, 256)):
    """Shapes by name, the first half of them one level further down."""
    names = [f"layer{i}" for i in range(count)]
    inside, outside = names[: count // 2], names[count // 2 :]
    struct = jax.ShapeDtypeStruct(shape, jnp.float32)
    return {"stack": dict.fromkeys(inside, struct)} | dict.fromkeys(outside, struct)


def cells(report):
    """Rows of the printed table without the header, as words."""
    return [line.split() for line in str(report).splitlines()[1:]]


def number(word):
    return int(word.replace(",", ""))


def test_up_to_forty_arrays_have_a_row_each():
    params = tree_of(19)
    report = state_report(jax.eval_shape(lion8bit().init, params))
    assert len(report.leaves) == MOST_ROWS == 40
    rows = cells(report)
    assert [row[0] for row in rows if row[0] != "total"] == [x.path for x in report.leaves]


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_more_arrays_are_shown_by_groups_that_add_up_to_all(count):
    report = state_report(jax.eval_shape(lamb8bit().init, tree_of(count)))
    assert len(report.leaves) == 4 * count + 2
    totals = [row for row in cells(report) if row[0] == "total"]
    groups = [row for row in cells(report) if row[0] != "total"]
    assert len(groups) <= MOST_ROWS
    assert sum(number(row[-1]) for row in groups) == report.nbytes == number(totals[-1][-1])
    counts = [number(row[1]) if "arrays" in row else 1 for row in groups]
    assert sum(counts) == len(report.leaves)


def test_groups_say_how_their_paths_begin():
    report = state_report(jax.eval_shape(lion8bit().init, tree_of(200)))
    assert [row for row in cells(report) if row[0] != "total"] == [
        ["count", "scalar", "int32", "device", "4"],
        ["mu/...", "200", "arrays", "uint8", "device", f"{200 * 64 * 256:,}"],
        ["mu_absmax/...", "200", "arrays", "float32", "device", f"{200 * 64 * 4:,}"],
        ["layout/power_256_v2", "scalar", "int32", "device", "4"],
    ]


def test_groups_keep_dtypes_and_kinds_of_memory_apart():
    params = {f"w{i}": jax.ShapeDtypeStruct((512, 512), jnp.float32) for i in range(50)}
    params |= {f"b{i}": jax.ShapeDtypeStruct((512,), jnp.float32) for i in range(50)}
    report = state_report(jax.eval_shape(paged_lion8bit().init, params))
    rows = {(row[0], *row[3:5]): row[-1] for row in cells(report) if "arrays" in row}
    assert rows == {
        ("mu/...", "uint8", "pinned_host"): f"{50 * 512 * 512:,}",
        ("mu/...", "float32", "device"): f"{50 * 512 * 4:,}",
        ("mu_absmax/...", "float32", "pinned_host"): f"{50 * 1024 * 4:,}",
        ("mu_absmax/...", "float32", "device"): f"{50 * 4:,}",
    }


def test_a_flat_state_of_many_arrays_is_one_group():
    report = state_report([jnp.zeros(2)] * 41)
    assert [row for row in cells(report) if row[0] != "total"] == [
        ["...", "41", "arrays", "float32", "device", "328"]
    ]


@pytest.mark.parametrize("abstract", [False, True])
def test_with_parameters_it_says_what_each_of_them_costs(abstract):
    params = {"w": jnp.zeros((64, 256), jnp.bfloat16), "b": jnp.zeros(256)}
    state = jax.eval_shape(lion8bit().init, params) if abstract else lion8bit().init(params)
    forms = jax.eval_shape(lambda: params) if abstract else params
    report = state_report(state, forms)
    assert report.parameters == 64 * 256 + 256
    assert report.parameter_nbytes == 2 * 64 * 256 + 4 * 256
    assert report.bytes_per_parameter == sum(
        math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)
    ) / (64 * 256 + 256)
    assert cells(report)[-2:] == [
        ["parameters", "16,640", "33,792"],
        ["state", "per", "parameter", f"{report.bytes_per_parameter:.3f}"],
    ]


def test_without_parameters_it_does_not():
    report = state_report(lion8bit().init({"w": jnp.zeros(8)}))
    assert report.parameters is report.parameter_nbytes is report.bytes_per_parameter is None
    assert cells(report)[-1][0] == "total"
    assert state_report((), {}).bytes_per_parameter is None


@pytest.mark.parametrize("factory", [lion8bit, paged_lion8bit])
def test_divided_arrays_have_their_bytes_on_one_device_beside_them(factory):
    tx = factory()
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    axes = NamedSharding(mesh, PartitionSpec("d"))
    params = {"w": jnp.zeros((1024, 512), device=axes), "b": jnp.zeros(1024, device=axes)}
    state = jax.jit(tx.init, out_shardings=state_sharding(tx, params))(params)
    report = state_report(state)
    arrays = jax.tree.leaves(state)
    assert [x.nbytes for x in report.leaves] == [x.nbytes for x in arrays]
    shards = [x.addressable_shards[0].data.nbytes for x in arrays]
    assert [x.shard_nbytes for x in report.leaves] == shards
    assert report.shard_nbytes == sum(shards) < report.nbytes
    assert str(report).splitlines()[0].endswith("per device")
    assert cells(report)[-1] == ["total", f"{report.nbytes:,}", f"{sum(shards):,}"]


def test_whole_arrays_have_no_such_column():
    report = state_report(lion8bit().init({"w": jnp.zeros((1024, 512))}))
    assert report.shard_nbytes == report.nbytes
    assert "per device" not in str(report)


def test_forms_that_say_how_they_are_divided_do_as_well():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    divided = NamedSharding(mesh, PartitionSpec(None, "d"))
    report = state_report(jax.ShapeDtypeStruct((3, 16), jnp.bfloat16, sharding=divided))
    assert (report.nbytes, report.shard_nbytes) == (96, 12)


def test_keys_of_random_numbers_count():
    key = jax.random.key(0)
    report = state_report(optax.add_noise(0.1, 0.1, key).init({"w": jnp.zeros(8)}))
    assert report.by_dtype == {"int32": 4, str(key.dtype): jax.random.key_data(key).nbytes}


@pytest.mark.parametrize("argument", ["state", "params"])
def test_what_is_no_array_is_refused_by_name(argument):
    trees = {"state": {"a": jnp.zeros(3)}, "params": {"a": jnp.zeros(3)}}
    trees[argument] |= {"b": {"c": "words"}}
    with pytest.raises(TypeError, match=f"`{argument}` must be .*, got str at 'b/c'"):
        state_report(**trees)


class Html(html.parser.HTMLParser):
    """The cells of a table, and the tags around them."""

    def __init__(self):
        super().__init__()
        self.tags, self.rows = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if data.strip():
            self.rows[-1][-1] += data


def test_notebooks_show_the_same_table_in_plain_html():
    params = {"<script>alert(1)</script>": jnp.zeros((64, 256)), "b & c": jnp.zeros(8)}
    report = state_report(lion8bit().init(params), params)
    found = Html()
    found.feed(report._repr_html_())
    assert found.tags == {"table", "tr", "th", "td"}
    assert [" ".join(row).split() for row in found.rows] == [
        line.split() for line in str(report).splitlines()
    ]
