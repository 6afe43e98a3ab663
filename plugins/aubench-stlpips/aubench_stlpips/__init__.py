"""Shift-tolerant LPIPS for autoshield-bench, on the weights that the wheel of ``stlpips-pytorch`` carries."""
