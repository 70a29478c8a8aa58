"""The ground: records, errors, tables, files, log. Nothing here imports torch."""
