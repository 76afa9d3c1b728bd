"""The networks: denoiser, segmenters and generators."""
