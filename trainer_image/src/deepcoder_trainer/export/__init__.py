"""Models that leave a run: verified to their root, written for vLLM and llama.cpp, compared with what they were."""
