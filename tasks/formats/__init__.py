"""Forms of answers: a preference that a program can check, planted in a real language model's own answers."""
