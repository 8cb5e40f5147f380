"""Reading and verifying what runs left in S3."""
