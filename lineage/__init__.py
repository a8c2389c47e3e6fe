"""Evidence: digests, records, signatures, the ledger, the channel and the registry. Imports no torch and no kfp."""
