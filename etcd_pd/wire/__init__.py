"""What engine and agent say to each other: values and packets in, bytes out, and the other way round."""
