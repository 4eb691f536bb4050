"""Networks: the condition encoder, the denoiser, and SegDiff, which joins them."""
