"""Export of a student: a Hugging Face directory with its model card, and ONNX."""
