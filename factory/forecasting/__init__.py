"""What a recipe will make, cost and gain, before anything is loaded; what this device can do."""
