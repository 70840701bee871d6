"""AlpacaEval's package with its own annotators or our judges, and its length-controlled win rate."""
