"""One-step super-resolution in full precision: encode, denoise once (Eq. 9), decode. Knows nothing of quantization."""
