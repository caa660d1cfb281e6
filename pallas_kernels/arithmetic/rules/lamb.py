"""LAMB (You et al., 2020): Adam's direction, as long as a share of the parameter's own norm."""

from pallas_kernels.arithmetic.rules.adam import ADAM, ADAM_AMSGRAD

LAMB = ADAM._replace(name="lamb", ratio=True)
LAMB_AMSGRAD = ADAM_AMSGRAD._replace(name="lamb_amsgrad", ratio=True)
