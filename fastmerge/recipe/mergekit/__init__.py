"""mergekit's configurations, read and merged as mergekit would merge them (https://github.com/arcee-ai/mergekit).

config      what may stand in a configuration, and where
settings    values that filters and gradients give to tensors
methods     mergekit's methods and parameters in fastmerge's terms
stacks      the layers of a model, by the names of its tensors
weave       slices: which stored tensor serves as which of the result
values      the parameters of every tensor
vocabulary  tokenizers: which rows of which embeddings make the result's
folder      what lies beside the weights
recipe      all of it, as a plan
"""
