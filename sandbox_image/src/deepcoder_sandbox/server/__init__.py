"""The judge over HTTP: a thin shell around the pool. Nothing here decides a verdict."""
