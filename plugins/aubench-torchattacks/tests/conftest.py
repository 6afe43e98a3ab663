"""One thread: the images are small, and threads that wait for each other cost more than they bring."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
