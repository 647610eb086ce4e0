"""VBench, the unchanged package, in an environment of its own."""
