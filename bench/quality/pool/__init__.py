"""How methods scale with the pool: FW-Merging's Figure 1 and Table 3 in miniature (Chen et al. 2025, arXiv 2503.12649).

`tasks` are twenty kinds of images, `methods` what is merged and how, `run` does it for all seeds, `costs` measures time
and memory, `report` sets the results beside the paper's, which `paper` has.
"""
