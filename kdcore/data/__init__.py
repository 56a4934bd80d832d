"""Data: tokenised documents, packing, rows, streams, sampling and collation. Internal."""
