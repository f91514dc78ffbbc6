"""Training: recipe, steps, stages, loop. The loop runs stages and knows no method by name."""
