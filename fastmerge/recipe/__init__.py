"""What is to be merged: preflight checks and the plan. Headers only; nothing here reads a weight or imports torch.

plan                 checks a merge and lays out its result; merge_plan, what can be told of that
options              what may be said of any merge; destination, where the result goes
parameters, layers   which parameters hold for which tensor
preflight            which tensor of a model serves as which of base's; tied, vocabulary: those of tokens
outputs, memory      a result's files, and how much is worked on at a time
reading              recipes (schema, yaml_file, json_schema) and configurations of mergekit's (mergekit/)
"""
