"""What every training process runs: model, batches, loop, checkpoints, export."""
