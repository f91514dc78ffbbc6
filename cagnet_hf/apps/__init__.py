"""What users do with a model: train, predict, show, export."""
