"""The figures of a report, one kind a file: results in, a drawing with its words out."""
