"""The only way to the API server beside kopf: one thin client with deadlines and bounded retries."""
