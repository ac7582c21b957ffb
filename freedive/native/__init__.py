"""The compiled kernels. Nothing below this line knows a model family."""
