"""What travels to the Hub with the weights: configuration, networks, image processing. One flat folder."""
