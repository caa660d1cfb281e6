"""Mistakes that the tests have to notice: `./dev mutants`, or some by number, `./dev mutants 3 17`.

Every mutant is one wrong line, tried in a copy of the checkout against the tests whose claim it
breaks. One that survives is a claim that nothing holds up. It takes about a minute for four.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 600
"""Seconds that the tests of one mutant may take."""


class Mutant(NamedTuple):
    """A mistake, where it is made, and the arguments of pytest that are to notice it."""

    mistake: str
    path: str
    right: str
    wrong: str
    tests: str


ARITHMETIC, TILED, OURS = "pallas_kernels/arithmetic", "pallas_kernels/tiled", "optax_lamblion"
KERNELS, OPTIMIZERS = "tests/kernels", "tests/optimizers"
ORACLE = f"{KERNELS}/test_rules_against_oracle.py"
XLA = "pallas_kernels/xla/step.py"

MUTANTS = [
    Mutant(
        "second moments may become zero, in XLA",
        XLA,
        "keep_nonzero=slot.second_moment",
        "keep_nonzero=False",
        f"{ORACLE} -k 'lamb8bit-linear-float32 and xla' -m 'slow or not slow'",
    ),
    Mutant(
        "second moments may become zero, in kernels",
        f"{TILED}/bodies.py",
        "keep_nonzero=slot.second_moment",
        "keep_nonzero=False",
        f"{ORACLE} -k 'lamb8bit-linear-float32 and not xla' -m 'slow or long or not slow'",
    ),
    Mutant(
        "L2 decay is clipped as well",
        f"{ARITHMETIC}/step.py",
        "        g = g + s.weight_decay * p\n    return g",
        "        g = g + (1 if s.grad_scale is None else s.grad_scale) * s.weight_decay * p\n"
        "    return g",
        f"{ORACLE} -k 'lamb8bit-percentile_l2_decay and xla'",
    ),
    Mutant(
        "LAMB's decay is left out of the norm",
        XLA,
        "return given.p, _decayed_direction(given, stored)",
        "return given.p, _direction(given, stored)",
        f"{ORACLE} -k 'lamb32bit-power-float32'",
    ),
    Mutant(
        "a ragged block loses its last element",
        f"{ARITHMETIC}/blocks.py",
        "jnp.max(x[whole:])[None]",
        "jnp.max(x[whole:-1] if size - whole > 1 else x[whole:])[None]",
        "tests/test_properties.py -k quantize",
    ),
    Mutant(
        "eight neighbours share a random number",
        f"{ARITHMETIC}/hashing.py",
        "_MULTIPLIER = 0x93D765DD",
        "_MULTIPLIER = 1",
        f"{KERNELS}/test_stochastic_rounding.py",
    ),
    Mutant(
        "neighbours have random numbers that depend on each other",
        f"{ARITHMETIC}/hashing.py",
        "_MULTIPLIER = 0x93D765DD",
        "_MULTIPLIER = 5",
        f"{KERNELS}/test_stochastic_rounding.py",
    ),
    Mutant(
        "random numbers may be 0",
        f"{ARITHMETIC}/hashing.py",
        "0x3F800040",
        "0x3F800000",
        f"{KERNELS}/test_stochastic_rounding.py",
    ),
    Mutant(
        "random numbers repeat after 2**32 elements",
        f"{ARITHMETIC}/hashing.py",
        "key = key ^ mix(high * jnp.uint32(0x9E3779B9))",
        "key = key",
        f"{KERNELS}/test_stochastic_rounding.py",
    ),
    Mutant(
        "all leaves are rounded alike",
        f"{OURS}/_optimizers/transform.py",
        "jnp.uint32(zlib.crc32(row.name.encode()))",
        "jnp.uint32(0)",
        f"{ORACLE} -k 'every_leaf or lion8bit-power-float32'",
    ),
    Mutant(
        "all steps are rounded alike",
        f"{OURS}/_optimizers/transform.py",
        "Dither(number,",
        "Dither(jnp.uint32(7),",
        f"{ORACLE} -k 'every_leaf or lion8bit-power-float32'",
    ),
    Mutant(
        "slots are rounded alike",
        f"{ARITHMETIC}/dither.py",
        "jnp.uint32(STRIDES[slot])",
        "jnp.uint32(STRIDES[0])",
        f"{ORACLE} -k 'lamb8bit-power-float32 and xla'",
    ),
    Mutant(
        "blocks of a leaf are rounded alike",
        f"{ARITHMETIC}/dither.py",
        "bits = phase + numbers * jnp.uint32(BLOCK_STRIDE)",
        "bits = phase + numbers * jnp.uint32(0)",
        f"{ORACLE} -k 'lion8bit-power-float32 and xla'",
    ),
    Mutant(
        "first moments are scrambled as much as second ones",
        f"{ARITHMETIC}/dither.py",
        "if slot.second_moment else even_digits_for(decay)",
        "if True else even_digits_for(decay)",
        f"{ORACLE} -k 'slow_momentum and xla'",
    ),
    Mutant(
        "a shard counts its blocks from its own beginning",
        f"{ARITHMETIC}/dither.py",
        "return self.place.block(numbers, block_size)",
        "return numbers",
        f"{KERNELS}/test_places.py -k 'shards_step and xla' -m 'slow or not slow'",
    ),
    Mutant(
        "the ring of norms is one step behind",
        f"{OURS}/_optimizers/clipping.py",
        "history.at[count % HISTORY]",
        "history.at[(count - 1) % HISTORY]",
        f"{OPTIMIZERS}/test_clipping.py",
    ),
    Mutant(
        "a norm of zero is recorded",
        f"{OURS}/_optimizers/clipping.py",
        "history = jnp.where(squared > 0, recorded, history)",
        "history = recorded",
        f"{OPTIMIZERS}/test_nonfinite.py -k overflow",
    ),
    Mutant(
        "of clips in a row the last one counts",
        f"{OURS}/_optimizers/scaled.py",
        "times(origin.scale, scale)",
        "scale",
        f"{OPTIMIZERS}/test_clipped_steps.py -k in_a_row -m slow",
    ),
    Mutant(
        "percentiles go by norms before the clip",
        f"{OURS}/_optimizers/global_norm.py",
        "jnp.square(scale * root(squared))",
        "squared",
        f"{OPTIMIZERS}/test_clipped_steps.py -k 'both_kinds and lion8bit' -m slow",
    ),
    Mutant(
        "a norm that is NaN clips nothing",
        f"{OURS}/_optimizers/global_norm.py",
        "below = norm < limit",
        "below = ~(norm >= limit)",
        f"{OPTIMIZERS}/test_global_norm.py -k not_finite",
    ),
    Mutant(
        "a norm is that of gradients before they are scaled",
        f"{OURS}/_optimizers/norms.py",
        "g = g * jnp.asarray(scale).astype(self.dtype)",
        "g = g + 0",
        f"{OPTIMIZERS}/test_grad_scale.py -k 'sees_the_product and clipped' -m slow",
    ),
    Mutant(
        "a device with a copy of a shard counts in its norm",
        f"{OURS}/_mesh/regions.py",
        "sums = jnp.where(lax.axis_index(axis) == 0, sums, 0)",
        "sums = sums",
        f"{OPTIMIZERS}/test_skipped.py -k shards_of_a_leaf -m 'slow or not slow'",
    ),
    Mutant(
        "a converted second moment may become zero",
        f"{OURS}/_checkpoints/recode.py",
        "keep_nonzero=slot.second_moment",
        "keep_nonzero=False",
        "tests/checkpoints/test_convert_state.py tests/interop/test_from_bitsandbytes.py"
        " -m 'slow or not slow'",
    ),
    Mutant(
        "Lion takes gradients whose momentum has no inverse",
        f"{ARITHMETIC}/rules/lion.py",
        "grad_limit=2.0**126",
        "grad_limit=2.0**127",
        f"{OPTIMIZERS}/test_edge_values.py -k huge",
    ),
    Mutant(
        "Adam takes gradients whose square has no inverse",
        f"{ARITHMETIC}/rules/adam.py",
        "grad_limit=2.0**63,",
        "grad_limit=2.0**64,",
        f"{OPTIMIZERS}/test_edge_values.py -k huge",
    ),
    Mutant(
        "kernels never ask which elements are usable",
        f"{TILED}/bodies.py",
        "tile.shortcut(total < jnp.inf,",
        "tile.shortcut(total <= jnp.inf,",
        f"{KERNELS}/test_mosaic.py -k 'bad_elements'",
    ),
    Mutant(
        "the largest value of a block is rounded above the top",
        f"{TILED}/ladders.py",
        "_LEAST_U = 2.0**-11",
        "_LEAST_U = 2.0**-24",
        f"{KERNELS}/test_dither.py -k 'wrap_no and kernels and power'",
    ),
    Mutant(
        "kernels do not read the residual of parameters",
        f"{TILED}/bodies.py",
        "if residual is None else joined(p, tile.load(residual))",
        "",
        f"{KERNELS}/test_param_rounding_kernels.py -k 'lion and compensated'",
    ),
    Mutant(
        "a kernel's tiles draw the same random numbers",
        f"{TILED}/rows.py",
        "row = self.spread(self.blocks(place))",
        "row = self.spread(self.blocks(place) % 4)",
        f"{KERNELS}/test_param_rounding_kernels.py -k 'lion and stochastic'",
    ),
    Mutant(
        "the NaN of a GPU is rounded up to zero",
        f"{ARITHMETIC}/params.py",
        "jnp.minimum(x.astype(jnp.float32).view(jnp.int32), _NAN)",
        "x.astype(jnp.float32).view(jnp.int32)",
        f"{KERNELS}/test_param_rounding_kernels.py -k computes_is_stored",
    ),
    Mutant(
        "a rule without a trust ratio gets one",
        f"{TILED}/step.py",
        "    if rule.ratio:\n        halfway",
        '    if rule.reads == "new":\n        halfway',
        f"{KERNELS}/test_mosaic.py -k 'adam and not lamb'",
    ),
    Mutant(
        "a leaf is summed up otherwise than its pieces",
        XLA,
        "*_squared(rough, stored))",
        "_squared(rough, stored)[0])",
        f"{KERNELS}/test_pieces.py -k 'xla_does and lamb' -m 'slow or not slow'",
    ),
    Mutant(
        "0 times infinity is a trust ratio",
        f"{ARITHMETIC}/step.py",
        "zero = (param_norm == 0) | (update_norm == 0)",
        "zero = param_norm == 0",
        f"{OPTIMIZERS}/test_nonfinite.py -k 'without_a_finite and lamb'",
    ),
    Mutant(
        "a cap may lengthen a step",
        f"{OURS}/_optimizers/transform.py",
        "        high = 1.0\n",
        "        pass\n",
        f"{ORACLE} -k 'no_cap and xla'",
    ),
    Mutant(
        "schedules are one step late",
        f"{OURS}/_optimizers/transform.py",
        "value = value(step.count)",
        "value = value(step.number)",
        f"{OPTIMIZERS}/test_contract.py -k schedules",
    ),
    Mutant(
        "AMSGrad remembers uncorrected second moments",
        f"{ARITHMETIC}/rules/adam.py",
        "jnp.maximum(x, v * own.debias2)",
        "jnp.maximum(x, v)",
        f"{ORACLE} -k 'lamb32bit-amsgrad'",
    ),
    Mutant(
        "the format of codes is not asked for",
        f"{OURS}/_state/layout.py",
        "if int(version) != FORMAT:",
        "if False:",
        f"{OPTIMIZERS}/test_state_errors.py",
    ),
    Mutant(
        "pairs of donated arrays are not put right",
        f"{OURS}/_steps/steps.py",
        "streamed[0] = streamed[0].replace(slots=donation.repair(streamed[0].slots))",
        "pass",
        f"{OPTIMIZERS}/test_donation_across_memories.py -m 'slow or not slow'",
    ),
    Mutant(
        "one block of codes that were cast is taken for moments",
        f"{OURS}/_state/checks.py",
        "return jnp.where(absmax == 0, values, jnp.nan), absmax",
        "return values, absmax",
        f"{OPTIMIZERS}/test_tampered.py -k 'step and amsgrad' -m 'slow or not slow'",
    ),
    Mutant(
        "a negative count is not seen",
        f"{ARITHMETIC}/rules/rule.py",
        "jnp.where(count > 0, count.astype(jnp.result_type(float)), jnp.nan)",
        "count.astype(jnp.result_type(float))",
        f"{OPTIMIZERS}/test_tampered.py -k 'step and amsgrad' -m 'slow or not slow'",
    ),
    Mutant(
        "arrays that were saved by position are not told apart",
        f"{OURS}/_state/layout.py",
        "if number in (None, 0, layout.number):",
        "if True:",
        f"{OPTIMIZERS}/test_state_errors.py",
    ),
    Mutant(
        "eager steps of injected hyperparameters are compiled anew",
        f"{OURS}/_steps/steps.py",
        "tuple(names[key] for key in keys), whole,",
        "(*(names[key] for key in keys), object()), whole,",
        "tests/meshes/test_ways_in.py -k injected -m 'slow or not slow'",
    ),
    Mutant(
        "a persistent cache takes AdamW for LAMB",
        f"{OURS}/_mesh/marks.py",
        "repr((_code(), program, jax.tree.structure(args)))",
        "repr((_code(), program))",
        "tests/meshes/test_persistent_cache.py -k hits -m 'slow or not slow'",
    ),
    Mutant(
        "norms of layers stay divided as the layers are",
        f"{OURS}/_optimizers/norms.py",
        "[ways_in.reshard(x, mesh, PartitionSpec()) for x in results]",
        "results",
        "tests/meshes/test_same_steps.py -k 'divided_layers and explicit' -m 'slow or not slow'",
    ),
    Mutant(
        "meshes of one shape are taken for the same",
        f"{OURS}/_mesh/one_mesh.py",
        " and (not devices or devices[0] == devices[1])",
        "",
        "tests/meshes/test_one_mesh.py -k stages",
    ),
    Mutant(
        "flipped bits of a .pt file are read",
        f"{OURS}/_checkpoints/bitsandbytes/torch_files.py",
        "if zlib.crc32(found) != part.CRC:",
        "if not zlib.crc32(found) and part.CRC is None:",
        "tests/hostile/test_hostile.py -k flipped",
    ),
    Mutant(
        "names of a file are obeyed by the terminal",
        f"{OURS}/cli/_output.py",
        "c if c.isprintable() else",
        "c if c.isprintable() or c < ' ' else",
        "tests/hostile/test_hostile.py -k escaped",
    ),
    Mutant(
        "a folder that was begun is left behind",
        f"{OURS}/cli/_orbax.py",
        "        shutil.rmtree(beside, ignore_errors=True)",
        "        pass",
        "tests/hostile/test_hostile.py -k leaves_nothing",
    ),
    Mutant(
        "a leaf of another shape is not begun anew",
        f"{OURS}/_checkpoints/saved.py",
        "if any(y is None or tuple(y.shape) != tuple(x.shape) for y in saved):",
        "if any(y is None for y in saved):",
        "tests/checkpoints/test_fresh_parameters.py -k goes_on_and_the_rest",
    ),
    Mutant(
        "a run that goes on starts its data anew",
        f"{OURS}/demo/compare.py",
        "for step in range(runs[0].steps, steps):",
        "for step in range(0, steps - runs[0].steps):",
        "tests/cli/test_train.py -k continues_as_if -m slow",
    ),
    Mutant(
        "a run overwrites another one",
        f"{OURS}/cli/_runs.py",
        "if any((folder / name).exists() for name in _FILES):",
        "if not settings.as_options():",
        "tests/cli/test_train.py -k does_not_overwrite -m slow",
    ),
    Mutant(
        "JAX is counted with all of a GPU",
        f"{OURS}/cli/_footprint.py",
        "return math.floor(self.fraction * self.size)",
        "return self.size",
        "tests/cli/test_memory.py -k 'does_not_take_all' -m slow",
    ),
    Mutant(
        "random numbers for parameters are half as large as they should be",
        f"{ARITHMETIC}/params.py",
        "_bits(x) + (bits >> 16)",
        "_bits(x) + (bits >> 17)",
        f"{KERNELS}/test_params.py -k right_share",
    ),
    Mutant(
        "residuals are rounded to the nearest",
        f"{ARITHMETIC}/params.py",
        "((bits >> 24).astype(jnp.int32) | 0x8000)",
        "0x8080",
        f"{KERNELS}/test_params.py -k unbiased",
    ),
    Mutant(
        "a parameter of float16 does not get past half a gap",
        f"{ARITHMETIC}/params.py",
        "missing < 0.5 * gap",
        "missing <= 0.5 * gap",
        f"{KERNELS}/test_params.py -k below_a_unit",
    ),
    Mutant(
        "an element of a piece has the random number of another",
        f"{ARITHMETIC}/hashing.py",
        "group = group + piece.first_block_of(_GROUP)",
        "group = group + 0",
        f"{KERNELS}/test_params.py -k element_of_a_piece",
    ),
    Mutant(
        "all steps have the same random numbers",
        f"{ARITHMETIC}/dither.py",
        "return mix(self.step + self.leaf)",
        "return mix(self.leaf)",
        f"{KERNELS}/test_params.py -k uncorrelated",
    ),
    Mutant(
        "residuals are forgotten after a step",
        f"{OURS}/_optimizers/transform.py",
        'new[i]["residual"] = x.residual',
        "pass",
        f"{OPTIMIZERS}/test_param_rounding.py -k 'residuals_lose and lion8bit'",
    ),
    Mutant(
        "residuals are forgotten in a conversion",
        f"{OURS}/_checkpoints/recode.py",
        "x = known.get(leaf)",
        "x = None",
        "tests/checkpoints/test_residuals.py -k 'goes_on and flax and lion8bit'",
    ),
]


def tried(mutant, folder):
    """What became of a mutant in a copy of the checkout: killed, survived, or what went wrong."""
    path = folder / mutant.path
    text = path.read_text()
    if mutant.right not in text:
        return f"is out of date: {mutant.path} has no {mutant.right!r}"
    path.write_text(text.replace(mutant.right, mutant.wrong))
    env = os.environ | dict(
        PYTHONPATH=str(folder),
        PYTHONDONTWRITEBYTECODE="1",
        JAX_PLATFORMS="cpu",
        OPTAX_LAMBLION_DEVICE="cpu",
    )
    command = f"{sys.executable} -m pytest -x -q --no-header -p no:cacheprovider {mutant.tests}"
    try:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"survived {LIMIT} s of tests"
    finally:
        path.write_text(text)
    if done.returncode == 0:
        return "survived"
    if done.returncode != 1:
        return f"could not be tried: {(done.stdout + done.stderr).strip().splitlines()[-1]}"
    failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
    return f"killed by {failed[0].split(' - ')[0].split(maxsplit=1)[1]}"


def main(numbers):
    """Tries mutants, all or those by number; the exit status says whether all were killed."""
    survived = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv*", "_build", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=ignored)
        for i in numbers or range(len(MUTANTS)):
            result = tried(MUTANTS[i], folder)
            survived += not result.startswith("killed")
            print(f"{i:2} {MUTANTS[i].mistake}: {result}", flush=True)
    print(f"{survived} survived" if survived else "all were killed")
    return survived > 0


if __name__ == "__main__":
    sys.exit(main([int(x) for x in sys.argv[1:]]))
