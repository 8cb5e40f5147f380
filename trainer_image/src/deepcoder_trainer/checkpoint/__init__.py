"""Durable state: storage, checkpoint writer and reader, export, verification."""
