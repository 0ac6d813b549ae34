"""The validator, tried: wrong kernels are made from right ones, and each must be found by the check."""
