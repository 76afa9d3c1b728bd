"""What goes in: images and masks on disk, the embedded phantom, and the split into folds."""
