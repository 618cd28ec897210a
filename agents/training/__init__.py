"""Train worlds from datasets."""
