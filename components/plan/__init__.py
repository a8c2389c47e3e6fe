"""Plan: take the model's lease, and say by digests whether there is anything to train or to judge."""
