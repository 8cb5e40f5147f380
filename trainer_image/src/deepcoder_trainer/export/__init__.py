"""Exports models: verifies the lineage, writes for vLLM and llama.cpp, and compares the result with the source."""
