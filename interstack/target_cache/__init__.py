"""What the teacher says of every utterance, computed once and read by memory map ever after."""
