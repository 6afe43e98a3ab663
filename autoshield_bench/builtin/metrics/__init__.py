"""The built-in metrics: predictions, pixels, structure (SSIM) and perception (LPIPS)."""
