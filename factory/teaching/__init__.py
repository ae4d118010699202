"""The teacher's predictions: from the target beside the student, or from a cache on disk."""
