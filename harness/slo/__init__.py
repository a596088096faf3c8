"""JUDGE: objectives in, verdict out."""
