"""Files: written atomically, on disks that may be full, and strict YAML."""
