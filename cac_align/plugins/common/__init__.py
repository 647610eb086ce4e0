"""What every host adapter shares: the reward of a process, missing scores, ranks, and the ledger's evidence."""
