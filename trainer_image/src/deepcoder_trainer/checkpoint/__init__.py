"""What is durable: storage, checkpoint writer and reader, export, verification."""
