"""PD-DDPM and its relatives: one reverse chain with a pluggable start and finish, for medical image segmentation."""
