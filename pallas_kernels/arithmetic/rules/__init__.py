"""The optimizers' maths: one file for each rule."""

from pallas_kernels.arithmetic.rules.adam import ADAM, ADAM_AMSGRAD
from pallas_kernels.arithmetic.rules.lamb import LAMB, LAMB_AMSGRAD
from pallas_kernels.arithmetic.rules.lion import LION
from pallas_kernels.arithmetic.rules.rule import Rule, Scalars, Slot

__all__ = ["ADAM", "ADAM_AMSGRAD", "LAMB", "LAMB_AMSGRAD", "LION", "Rule", "Scalars", "Slot"]
