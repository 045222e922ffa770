"""vlbench's models as other harnesses call them (lmms-eval, VLMEvalKit), and their logs as scores to compare."""
