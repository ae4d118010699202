"""results.json, tokens.jsonl and report.html: everything drawn is drawn from files alone."""
