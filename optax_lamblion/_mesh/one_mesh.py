"""All arrays of a step are on one mesh; where they are not, that is said with a leaf's name.

A step is one region of one mesh. With Auto axes JAX wants a whole program to have but one, as soon
as XLA asks back how to divide a part of it (`ways_in`).
"""

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, Mesh, NamedSharding


def check_one_mesh(rows, *, one_device=False):
    """Raises `ValueError` where arrays are on several meshes, as far as that is known.

    Args:
      rows: The name of every leaf, and its arrays or Nones.
      one_device: Whether arrays that are on no mesh have to be on one device, too.
    """
    rows = [(name, x) for name, arrays in rows for x in arrays if hasattr(x, "dtype")]
    types_only = any(isinstance(x, Tracer) for _, x in rows)
    places = [(name, _place(x, types_only)) for name, x in rows]
    places = [(name, place) for name, place in places if place is not None]
    for name, place in places:
        first, there = places[0]
        if _same(place, there) or not (one_device or _is_mesh(place) or _is_mesh(there)):
            continue
        raise ValueError(
            f"Leaf {name!r} is on {_words(place)}, and {first!r} on {_words(there)}; a step has "
            "all of its arrays in one place. Put them on one mesh, of which a partition spec may "
            'name several axes for one axis of an array, as in `P(("x", "y"))`. Or give every '
            "place an optimizer of its own with `optax.partition`, which inside of `jax.jit` needs "
            "meshes with Explicit axes."
        )


def _place(x, types_only):
    """The mesh of an array, or the device that it is tied to; None where it could be anywhere."""
    if types_only:
        mesh = jax.typeof(x).sharding.mesh
        return mesh if mesh.size > 1 else None
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
        return sharding.mesh
    if getattr(x, "committed", False) and len(x.sharding.device_set) == 1:
        return next(iter(x.sharding.device_set))
    return None


def _is_mesh(place):
    return isinstance(place, Mesh | AbstractMesh)


def _same(place, other):
    """Whether it is the same one; of what kind the axes of a mesh are does not matter."""
    if place is other or not (_is_mesh(place) and _is_mesh(other)):
        return place is other
    devices = [x.devices.tolist() for x in (place, other) if isinstance(x, Mesh)]
    return place.shape == other.shape and (not devices or devices[0] == devices[1])


def _words(place):
    return f"a mesh with axes {dict(place.shape)}" if _is_mesh(place) else f"device {place}"
