"""Models on disk and in memory: located, loaded, saved, laid over devices, quantised or in shards."""
