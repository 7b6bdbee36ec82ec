"""From a team's files to token ids: records, readers, split, validation, encoding, batches."""
