"""Place: where things are kept and where work runs. Imports nothing of ours."""
