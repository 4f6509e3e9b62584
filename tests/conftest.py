"""What every test runs under: one thread, no display."""

import os

os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg")  # before torch is imported; workers inherit it

import torch

torch.set_num_threads(1)
