"""What recserve promises under faults, each promise a check that can fail: ./run reliability."""
