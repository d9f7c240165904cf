"""Streaming checkpoints through methods: reading ahead, computing, writing behind. The arithmetic of merging is in ops.

merge, run        checkpoints on disk, by arguments and by a recipe; state_dicts, those in memory
works             a pass of a plan as works: what is read, what is called, where results go
passes            a pass over one tensor, for every output
run_pass          the works of a pass, but for those that are finished: by stream on the CPU, by pipeline on GPUs
stream, reading   chunks from files, through a function, into slots of a writer
pipeline, devices, feed, outlet   the same by way of a GPU's memory
slots, writer, memory_file        files written at known offsets
publish, journal  the output appears whole, and what was done is not done again; identity, whether it is the same merge
statistics, statistics_file   what depends on the inputs alone, kept for another merge
side_files, hashes, report    what lies beside the weights, and what the caller is told
culprit, gather   whose NaN it is; statistics without a result
task              one task's model; extract, factor: a model as an adapter
verify, remerge   a merged folder against its record and its inputs
diff, spectrum, spectrum_plot, rings   what checkpoints differ in, by tensor and by frequency
"""
