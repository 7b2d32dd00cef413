"""vLLM: a pool of pages in what a profile run leaves of the memory it may take."""
