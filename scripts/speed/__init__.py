"""How fast the package is: what it does, timed against what the hardware must do for it."""
