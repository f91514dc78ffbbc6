"""From the names of classes to vectors: bundled tables, word vectors, text encoders."""
