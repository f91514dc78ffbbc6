"""Category patches: their layouts, the PixelCNN that models them, the bank of sampled ones."""
