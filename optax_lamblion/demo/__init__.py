"""The demo: small Flax models, trained with several optimizers at once and compared.

`optax-lamblion train` is a command line around these modules, and notebooks import them directly.
`optimizers` and `shapes` need nothing beyond the library; the rest needs the extra
`demo`. Nothing in the library itself imports this package.
"""
