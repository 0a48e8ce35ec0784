"""Training-time compression. Needs the extra `torch`."""
