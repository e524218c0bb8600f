"""Comparisons with recorded outputs of the official code; each prints one line (see scripts/parity.sh)."""

import numpy as np
import torch


def close(name, got, want, tolerance):
    """Assert that the largest difference, relative to the largest recorded magnitude, is within `tolerance`."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, recorded {want.shape}"
    difference = np.abs(got - want).max() / max(np.abs(want).max(), 1e-12)
    print(f"parity {name}: largest relative difference {difference:.2e}, allowed {tolerance:.0e}, {want.size} values")
    assert difference <= tolerance, name


def same(name, got, want):
    """Assert that all values are equal."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, recorded {want.shape}"
    different = int((got != want).sum())
    print(f"parity {name}: {different} of {want.size} values differ, allowed 0")
    assert different == 0, name


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))
