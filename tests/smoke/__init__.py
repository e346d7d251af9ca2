"""Real runs of the command line, one for each combination that the plan allows, judged by claims."""
