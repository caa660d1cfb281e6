"""`optax-lamblion info`: versions, devices, and which implementation the optimizers would use."""

from __future__ import annotations

import importlib.metadata
import platform

import jax

import optax_lamblion
from optax_lamblion import _implementation
from optax_lamblion.cli._output import Table, print_json, print_table
from optax_lamblion.demo.optimizers import OPTIMIZERS

_CORE = ("jax", "jaxlib", "optax", "numpy")
_OPTIONAL = ("flax", "jax-triton", "triton", "libtpu")
_PLUGIN_WORDS = ("-plugin", "-pjrt")


def run(as_json: bool) -> int:
    """Prints what is installed and what it would run."""
    found = {
        "versions": versions(),
        "devices": devices(),
        "implementations": implementations(),
        "optimizers": optimizers(),
    }
    if as_json:
        print_json(found)
        return 0
    table = Table("Versions", ["package", "version"], left=["version"])
    for name, version in found["versions"].items():
        table.add(name, version or "not installed", dimmed=version is None)
    print_table(table)
    table = Table(
        "Devices",
        ["device", "platform", "kind", "memory kinds"],
        left=["platform", "kind", "memory kinds"],
    )
    for device in found["devices"]:
        table.add(
            device["device"], device["platform"], device["kind"], ", ".join(device["memory_kinds"])
        )
    print_table(table)
    table = Table(
        "Implementations of a step in 8 bits",
        ["implementation", "what it is", "here"],
        left=["what it is", "here"],
    )
    for row in found["implementations"]:
        table.add(
            row["implementation"], row["what"], row["reason"] or "runs", dimmed=not row["runs"]
        )
    print_table(table)
    table = Table(
        "Optimizers",
        ["optimizer", "implementation", "why"],
        left=["implementation", "why"],
    )
    for row in found["optimizers"]:
        table.add(row["optimizer"], row["implementation"], row["reason"])
    print_table(table)
    return 0


def versions() -> dict[str, str | None]:
    """Versions by name; `None` for what is optional and absent."""
    found: dict[str, str | None] = {
        "optax-lamblion": optax_lamblion.__version__,
        "python": platform.python_version(),
    }
    found |= {name: _version(name) for name in (*_CORE, *_OPTIONAL)}
    return found | {name: _version(name) for name in _plugins()}


def devices() -> list[dict]:
    """The devices that JAX sees in this process, each with the memories it can address."""
    return [
        {
            "device": str(device),
            "platform": device.platform,
            "kind": device.device_kind,
            "memory_kinds": sorted(memory.kind for memory in device.addressable_memories()),
        }
        for device in jax.local_devices()
    ]


def implementations() -> list[dict]:
    """What there is to run steps in 8 bits, and why it does not run here."""
    return [
        {"implementation": name, "what": what, "runs": not reason, "reason": reason}
        for name, what, reason in _implementation.here()
    ]


def optimizers() -> list[dict[str, str]]:
    """What each optimizer would run here, and why."""
    ours = [row.name for row in OPTIMIZERS.values() if row.ours]
    return [
        {"optimizer": optimizer, "implementation": implementation, "reason": reason}
        for optimizer, implementation, reason in _implementation.explain(ours)
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plugins() -> list[str]:
    """JAX's hardware plugins come as distributions of their own, such as `jax-cuda13-plugin`."""
    names = {(dist.name or "").lower() for dist in importlib.metadata.distributions()}
    return sorted(
        name
        for name in names
        if name.startswith("jax-") and any(word in name for word in _PLUGIN_WORDS)
    )
