"""The student taken away: a Hugging Face directory with its card, and ONNX."""
