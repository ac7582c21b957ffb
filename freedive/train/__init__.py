"""Training: from raw text to a mixture of experts that freedive serves. Needs torch (`pip install freedive[train]`)."""
