"""The commands of `cagnet-hf`: each is one function, in the file of its name, and its signature is its command line.

These files are light: PyTorch and transformers are imported where a function needs them, so that help answers at once.
"""

# In the order in which someone meets them.
COMMANDS = (
    "from_names",
    "fit",
    "recipes",
    "train",
    "evaluate",
    "predict",
    "demo",
    "add_classes",
    "calibrate",
    "compare",
    "prepare_data",
    "prepare_embeddings",
    "convert_checkpoint",
    "push_to_hub",
    "export_onnx",
)
