"""A reward behind HTTP: the application, the wire format, the client and the batcher."""
